"""How a loader decides to keep its images on the device, and how many workers it takes: figures by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from kit import make_images
from loaders import loader, make_params

from model.images import cache, fetch, workers
from model.images.fetch import Fetcher

SIDE = 16  # px of the images in these tests


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """30 images of 16 px: 30 * 16 * 16 * 3 = 23,040 bytes."""
    folder = tmp_path_factory.mktemp("images")
    for split in ("train", "valid"):
        make_images(folder / split, classes=3, per_class=10, side=SIDE)
    return folder


@pytest.fixture
def source(images):
    return loader(images, im_sz=SIDE, num_workers=0).fetcher.reader.source


@pytest.mark.parametrize(("free", "is_resident"), [(4 * 23_040, True), (4 * 23_040 - 1, False)])
def test_images_reside_on_a_gpu_if_they_take_a_quarter_of_what_is_free(source, monkeypatch, free, is_resident):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 10**12))
    fetcher = Fetcher(source, None, make_params(im_sz=SIDE), "cpu", micro_batch_size=8)
    assert not fetcher.is_resident, "on the CPU a memory map serves as well"
    fetcher.device = "cuda:1"
    assert fetcher._may_reside(source, make_params(im_sz=SIDE)) is is_resident
    assert not fetcher._may_reside(source, make_params(im_sz=SIDE, cache="disk"))


def test_images_that_are_asked_to_reside_are_read_once(source):
    fetcher = Fetcher(source, None, make_params(im_sz=SIDE, cache="device"), "cpu", micro_batch_size=8)
    assert fetcher.is_resident
    assert fetcher.num_workers == 0
    assert fetcher.stored is not None
    assert np.array_equal(fetcher.stored.images.numpy(), source.read(np.arange(30)))


@pytest.mark.parametrize(("cores", "num_workers"), [(1, 1), (2, 1), (6, 5), (9, 8), (64, 8)])
def test_workers_are_taken_where_images_are_decoded_each_time(images, monkeypatch, cores, num_workers):
    monkeypatch.setattr(fetch, "num_cores", lambda: cores)
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 10**12)
    assert loader(images, im_sz=SIDE, cache="off").num_workers == num_workers
    assert loader(images, im_sz=SIDE, cache="ram").num_workers == 0, "a batch is a copy out of the cache"
    strong = [{"name": "HorizontalFlip"}, {"name": "GaussianBlur"}]
    assert loader(images, im_sz=SIDE, cache="ram", augment=strong).num_workers == num_workers, "one by one"
    assert loader(images, im_sz=SIDE, cache="ram", num_workers=3).num_workers == 3


@pytest.mark.parametrize(("spare", "num_workers"), [(0, 3), (-1, 0)])
def test_workers_need_shared_memory_for_two_batches_each(images, monkeypatch, spare, num_workers):
    needed = 3 * 2 * (8 * SIDE * SIDE * 3)  # workers, batches, bytes of a batch of 8
    monkeypatch.setattr(workers, "free_shared_memory", lambda: needed + spare)
    train = loader(images, im_sz=SIDE, cache="off", num_workers=3)
    assert train.num_workers == num_workers
    assert ("no workers: 0 MiB of shared memory are free, 1 MiB are needed for 3" in train.description) == (spare < 0)


@pytest.mark.parametrize(("allowed", "form"), [(23_040, "decoded images on disk"), (23_039, "decoded each time")])
def test_auto_keeps_images_decoded_up_to_a_number_of_bytes(images, tmp_path, monkeypatch, allowed, form):
    monkeypatch.setattr(cache, "MAX_AUTO_BYTES", allowed)
    assert form in loader(images, im_sz=SIDE, num_workers=0, cache_dir=tmp_path).description


def test_a_worker_notes_the_image_that_it_augments(source, monkeypatch):
    """So that the file is named when the worker dies of it."""

    class Watch:
        is_batched = False

        def __init__(self):
            self.noted = []

        def image(self, image: np.ndarray, epoch: int, position: int) -> np.ndarray:
            self.noted.append((position, reader.current_files(2)[1]))
            return image

    watch = Watch()
    reader = workers.BatchReader(source, watch)  # pyright: ignore[reportArgumentType] (the two things of it that are used)
    monkeypatch.setattr(workers, "get_worker_info", lambda: SimpleNamespace(id=1))
    reader[(0, np.array([7, 20, 3]))]
    assert watch.noted == [(position, source.index.paths[position]) for position in (7, 20, 3)]
