"""The ablation command: which runs it makes, what they share, what it makes of their scores."""

import json

import pytest

from configs import digits
from experiments import ablation
from rml_jax.config import load_config, save_config
from rml_jax.utils.errors import UserError
from rml_jax.variants import CHANGES, LADDER, REMOVALS


@pytest.fixture
def calls(monkeypatch):
    """The names of the folders that were trained. Training leaves a configuration and checkpoints of one file."""
    trained = []

    def train(config, folder):
        trained.append(folder.name)
        for step in (config.checkpoint.every, config.train.steps):
            (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
            (folder / "checkpoints" / str(step) / "of").write_text(folder.name)
        save_config(config, folder / "config.json")

    def evaluate_run(config, folder, split):
        score = 0.1 * len(folder.name) + 0.01 * config.train.seed
        metrics = {
            "miou": {"predicted": {"cam": score}, "given": {"cam": score + 0.2}},
            "classification": {"f1": 0.5},
            "step": config.train.steps,
            "commit": "abc",
        }
        return metrics, None

    monkeypatch.setattr(ablation, "train", train)
    monkeypatch.setattr(ablation, "evaluate_run", evaluate_run)
    return trained


def make(name, tmp_path, seed=0, **changes):
    config = ablation.variant_config(digits.get_config(), name, seed)
    config.update_from_flattened_dict(changes)
    ablation.run(config, tmp_path / f"{name}-seed{seed}", tmp_path / f"baseline-seed{seed}")


def test_every_variant_changes_something_but_full():
    assert {"full", *LADDER, *REMOVALS} == set(CHANGES)
    configs = [ablation.variant_config(digits.get_config(), name, 0).to_json() for name in CHANGES]
    assert len(set(configs)) == len(configs)
    assert ablation.variant_config(digits.get_config(), "full", 0).loss == digits.get_config().loss


def test_a_key_and_value_is_a_variant():
    config = ablation.variant_config(digits.get_config(), "affine.scale=(0.9, 1.0)", 7)
    assert config.affine.scale == (0.9, 1.0)
    assert config.train.seed == 7


@pytest.mark.parametrize("name", ["half", "loss.nothing=1", "loss.ciml=big", "loss.ciml=", "loss.ciml='a'"])
def test_what_is_no_variant_is_named(name):
    with pytest.raises(UserError, match=name.split("=")[0]):
        ablation.variant_config(digits.get_config(), name, 0)


def test_a_finished_run_is_not_repeated(calls, tmp_path):
    make("full", tmp_path)
    make("full", tmp_path)
    assert calls == ["full-seed0"]
    with pytest.raises(UserError, match=r"loss\.ciml"):
        make("full", tmp_path, **{"loss.ciml": 0.5})


@pytest.mark.parametrize(
    ("name", "changes", "shared"),
    [
        ("full", {}, True),
        ("ciml", {}, True),
        ("affine.rotation=5.0", {}, True),
        ("no_fusion", {}, False),  # has other parameters
        ("full", {"optimizer.head_lr": 0.5}, False),
        ("full", {"train.steps": 1000}, False),  # another learning rate at the same step
        ("full", {"loss.start_step": 500}, False),  # no checkpoint there
    ],
)
def test_what_shares_the_baselines_warm_up(calls, tmp_path, name, changes, shared):
    make("baseline", tmp_path)
    make(name, tmp_path, **changes)
    result = json.loads((tmp_path / f"{name}-seed0" / "result.json").read_text())
    assert result["warm_up_from"] == ("baseline-seed0" if shared else None)
    warm_up = tmp_path / f"{name}-seed0" / "checkpoints" / str(digits.get_config().loss.start_step)
    if shared:
        assert warm_up.exists()
    assert load_config(tmp_path / "baseline-seed0" / "config.json").loss.start_step == 900


def test_a_stopped_run_has_no_wall_time(calls, tmp_path):
    (tmp_path / "full-seed0").mkdir()
    (tmp_path / "full-seed0" / "config.json").write_text("{}")
    make("full", tmp_path)
    assert json.loads((tmp_path / "full-seed0" / "result.json").read_text())["train_seconds"] is None


def test_summary_holds_mean_spread_and_values_of_what_is_finished(calls, tmp_path):
    for seed in (0, 2):
        make("baseline", tmp_path, seed)
    make("full", tmp_path, 0)
    (tmp_path / "ciml-seed0").mkdir()  # not finished
    ablation.write_summary(tmp_path)
    summary = json.loads((tmp_path / "ablation.json").read_text())
    assert set(summary["variants"]) == {"baseline", "full"}
    baseline = summary["variants"]["baseline"]
    assert baseline["seeds"] == [0, 2]
    # "baseline-seed0" has 14 letters: 1.40 and 1.42.
    assert baseline["predicted"]["cam"]["mean"] == pytest.approx(1.41)
    assert baseline["predicted"]["cam"]["std"] == pytest.approx(0.02 / 2**0.5)
    assert baseline["given"]["cam"]["values"] == pytest.approx([1.6, 1.62])
    assert summary["variants"]["full"]["predicted"]["cam"]["std"] is None
    lines = (tmp_path / "ablation.md").read_text().splitlines()
    assert lines[0] == "| variant | seeds | cam (predicted) | cam (given) | training, s |"
    assert lines[2].startswith("| `baseline` | 0, 2 | 141.0 ± 1.4 | 161.0 ± 1.4 |")
    assert lines[3].startswith("| `full` | 0 | 100.0 | 120.0 |")
    # Seed 0 alone has both: 1.40 - 1.00 and 1.60 - 1.20.
    assert lines[-1] == "| `baseline` | 0 | +40.0 | +40.0 |"


def test_differences_from_full_are_taken_seed_by_seed():
    def entry(*values):
        return {"seeds": list(range(len(values))), "given": {"cam": {"values": list(values)}}}

    text = ablation.differences({"full": entry(0.5, 0.3), "no_mi": entry(0.47, 0.29)})
    assert text.splitlines()[2:] == ["| `no_mi` | 0, 1 | -2.0 ± 1.4 |"]
