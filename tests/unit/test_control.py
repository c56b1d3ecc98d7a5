"""The progress bar of a terminal: one per epoch, at the step that training has reached."""

from types import SimpleNamespace

from engine.control import Bar
from engine.events import Epoch, Step


def test_a_bar_follows_the_steps_and_closes_with_the_epoch(capfd):
    bar = Bar(SimpleNamespace(watched=True, shown=0.0), 10)  # pyright: ignore[reportArgumentType] (what it reads of it)
    for step in (14, 17):
        bar.show(Step(2, step, [0.1], 0.5, {}, 100.0), epoch_step=10)
    assert bar.bar is not None
    assert (bar.bar.n, bar.bar.total) == (7, 10)
    bar.show(Epoch(2, 20, {}, None), epoch_step=10)
    assert bar.bar is None
    assert "epoch 2" in capfd.readouterr().err
