"""The log of a run: means by hand, exact over an interruption."""

import json

from rml_jax.training.runlog import RunLog, Window


def metrics(loss, skipped=0.0, **more):
    return {"loss": loss, "skipped": skipped, **more}


def test_means_leave_out_what_is_not_finite_and_count_skipped_steps():
    window = Window()
    window.add(metrics(1.0, ciml=4.0))
    window.add(metrics(float("nan"), skipped=1.0, ciml=float("inf")))
    window.add(metrics(float("nan"), skipped=1.0, ciml=2.0))
    assert (window.skipped, window.skipped_in_row) == (2, 2)
    window.add(metrics(2.0, ciml=3.0))
    assert (window.skipped, window.skipped_in_row) == (2, 0)
    assert window.take() == {"loss": 1.5, "ciml": 3.0}
    assert window.take() == {}
    assert window.skipped == 2


def test_window_saved_as_json_goes_on_exactly():
    losses = [0.1, 0.2, 1e-9, 3e7, 0.7]
    whole, first = Window(), Window()
    for loss in losses:
        whole.add(metrics(loss))
    for loss in losses[:3]:
        first.add(metrics(loss))
    second = Window(json.loads(json.dumps(first.as_json())))
    for loss in losses[3:]:
        second.add(metrics(loss))
    assert second.take() == whole.take()


def test_resumed_log_takes_back_what_came_after_the_checkpoint(tmp_path):
    log = RunLog(tmp_path, start=0, total=4)
    for step in (1, 2, 3):
        log.write(step, {"loss": step / 2}, skipped=0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log = RunLog(tmp_path, start=2, total=4)
    log.write(3, {"loss": 9.0}, skipped=1)
    log.close()
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["step"], entry["loss"], entry["skipped"]) for entry in entries] == [
        (1, 0.5, 0),
        (2, 1.0, 0),
        (3, 9.0, 1),
    ]
    assert all(entry["speed/steps_per_second"] > 0 for entry in entries)


def test_summary_names_the_metric_that_chose_the_best_checkpoint(tmp_path, capsys):
    log = RunLog(tmp_path, start=0, total=4)
    log.summary(4, 0, [2, 4], ("mfml", 2), "abc")
    log.close()
    assert "checkpoints: 2, 4; lowest mfml at 2\n" in capsys.readouterr().out
