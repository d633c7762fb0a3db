"""A killed training resumes from its last checkpoint and ends with the same parameters."""

import pytest

from tests.e2e import faults


@pytest.mark.slow
def test_kill_9_changes_no_parameter(tmp_path):
    row = faults.kill(faults.Trial(tmp_path, kills=2))
    assert row["survived"] == row["tried"] == 2
    assert row["parameters"] == row["undisturbed"]
