"""What model/ hands over is what the engine asks for. The type checker compares signatures; this compares what is there."""

from kit import make_dataset

from engine.protocols import Loader, Metric
from model.data_loader import fetch_dataloader
from model.metric import METRICS, make_metrics
from params import Params


def test_the_loaders_of_the_model_are_loaders(tmp_path):
    data = make_dataset(tmp_path / "data", per_class=2)
    for loader in fetch_dataloader(["train", "valid"], data, Params(im_sz=16), cache_dir=tmp_path).values():
        assert isinstance(loader, Loader)
        batch = next(loader.batches(0, 0))
        assert len(batch) == 4
        assert len({len(part) for part in batch}) == 1
        assert loader.step_size(0) == loader.num_images == 6
        assert loader.paths[5] in loader.files(0, 0)


def test_the_metrics_of_the_model_are_metrics(tmp_path):
    for metric in make_metrics(list(METRICS), tmp_path).values():
        assert isinstance(metric, Metric)
    assert not isinstance(len, Metric)
    assert not isinstance(METRICS, Loader)
