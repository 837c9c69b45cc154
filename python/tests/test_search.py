"""Trials for other optimisers."""

import crdiff
import crdiff.search
import numpy as np
import pytest

SPACE = {
    "version": 1,
    "variables": {"down": {"ratio": [0.1, 0.8]}, "w": {"number": [0, 2]}},
    "plan": {"version": 1, "crdiff": {"down": "$down"}, "amplify": {"weight": "$w"}},
    "prompts": ["the cat"],
    "sampling": {"size": "32x32", "steps": 2},
    "objective": {"command": ["sh", "-c", "cp \"$0\" drawn.png; wc -c < \"$0\"", "{image}"]},
}


def test_trials(fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = fixtures / "pipelines/sd15"
    trials = crdiff.search.Trials(folder, SPACE, engine="rten")
    values = {"down": np.float64(0.3), "w": 1.5}
    found = trials(values)
    assert found.failed is None and found.scores == [found.score] and found.score > 0
    assert found.to_dict()["values"] == {"down": 0.3, "w": 1.5}
    assert found.plan.to_dict() == {**SPACE["plan"], "crdiff": {"down": 0.3}, "amplify": {"weight": 1.5}}

    # It drew what a pipeline draws with the plan.
    from PIL import Image

    pipe = crdiff.Pipeline(folder, found.plan.to_dict(), engine="rten")
    image = pipe("the cat", 32, 32, num_inference_steps=2, seed=0).images[0]
    difference = np.asarray(Image.open("drawn.png"), dtype=int) - np.asarray(image, dtype=int)
    assert np.abs(difference).max() <= 1
    assert crdiff.search.trial(folder, SPACE, values, engine="rten").score == found.score
    assert trials({"down": 0.5, "w": 1}).plan.crdiff.down == 0.5


def test_mistakes(fixtures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = fixtures / "pipelines/sd15"
    trials = crdiff.search.Trials(folder, SPACE, engine="rten")
    for values, said in [({"down": 0.3}, "w"), ({"down": 0.9, "w": 1}, "down"), ({"down": 0.3, "w": 1, "x": 1}, "x")]:
        with pytest.raises(ValueError, match=said):
            trials(values)
    # A trial that fails is a score, as optimisers want it.
    broken = crdiff.search.Trials(folder, {**SPACE, "objective": {"command": ["false"]}}, engine="rten")
    found = broken({"down": 0.3, "w": 1})
    assert found.score == -2 and found.failed
    with pytest.raises(crdiff.SpaceError, match="space:"):
        crdiff.search.Trials(folder, {**SPACE, "variabels": {}})
    with pytest.raises(crdiff.SpaceError, match="nowhere.yaml"):
        crdiff.search.Trials(folder, tmp_path / "nowhere.yaml")
    with pytest.raises(crdiff.ModelError):
        crdiff.search.Trials(tmp_path, SPACE)
