"""Values of no annotated kind for every argument of every public function: one line that names it, no traceback."""

import inspect
from dataclasses import replace

import numpy as np
import pytest
import torch
from healing_data import completion

import steer_heal as sh
from steer_heal.arguments import _hint, fits
from steer_heal.config import RunConfig
from steer_heal.errors import InputError, NotWrittenError

FUNCTIONS = ("calibrate", "compare", "completion_rows", "completions_from_rows", "evaluate", "extract", "extract_pairs",
             "generate", "heal", "load_completions", "mean_divergence", "reference_states", "retain", "run_rounds",
             "save_completions")  # fmt: skip
METHODS = ("AdapterStack.push", "SteeringVector.applied", "SteeringVector.save", "SteeringVector.load",
           "SteeringVector.random_like", "SteeringVector.cosine", "Adapter.save", "Adapter.load", "Adapter.compressed",
           "AdapterStack.export_peft", "CoherenceFilter.calibrate", "CoherenceFilter.judge_text",
           "CoherenceFilter.report", "Completion.from_text", "LM.chat_ids", "Metrics.save", "Trait.load")  # fmt: skip
OF_CLASS = (classmethod, staticmethod)
WRONG = ("nonsense", 8.5, [], [None], ["ab", "cd"], {"a": "b"}, object(), None, b"x")
HERE_TOO = {
    "generate": ("vector", "sampling", "keep", "on_batch"), "evaluate": ("trait", "vector", "scorer", "vignettes"),
    "heal": ("config", "references", "lam0", "teacher", "on_step"), "extract_pairs": ("pairs",),
    "compare": ("before", "after", "n_boot"), "run_rounds": ("config", "reporter", "resume", "trait", "on_event"),
    "reference_states": ("completions", "around"), "mean_divergence": ("student", "config"), "calibrate": ("vector",),
    "AdapterStack.push": ("adapter", "dose"), "SteeringVector.applied": ("dose",), "SteeringVector.save": ("path",),
    "save_completions": ("path",),
}  # fmt: skip
"""Arguments whose annotation is a class, a function or a mapping of them: these were passed over before."""


@pytest.fixture(scope="module")
def good(tiny):
    """A value of the right kind for each argument that has no default."""
    vector = sh.extract(tiny, "be kind", "be cold", ["a", "b", "c"])
    metrics, states = sh.Metrics("", "", 0.0, "", ()), sh.ReferenceStates({}, "", "")
    rows = [completion(tiny, 0, 5)]
    fitted = sh.CoherenceFilter.fit([replace(rows[0], scores={"nll": 1.0})] * 20)
    return {
        "AdapterStack": sh.AdapterStack(tiny.model), "SteeringVector": vector, "vector": vector, "lm": tiny,
        "model": tiny, "completions": rows, "rows": [{}], "prompts": ["a"], "contexts": ["a", "b"], "pos": "a",
        "neg": "b", "pairs": [("a", "b")] * 2, "config": sh.HealConfig(), "trait": sh.Trait.load("pocket-care"),
        "path": "x", "before": metrics, "after": metrics, "base": metrics, "steered": metrics, "student": metrics,
        "reference": states, "adapter": sh.Adapter({}, {}, 1, 1.0), "Adapter": sh.Adapter({}, {}, 1, 1.0),
        "CoherenceFilter": fitted, "Completion": rows[0], "LM": tiny, "Metrics": metrics, "folder": "x", "rank": 1,
        "text": "a", "judged": rows, "prompt": "a", "seed": 1, "user": "a", "other": vector, "name_or_path": "x",
        "Trait": sh.Trait.load("pocket-care"),
    }  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS + METHODS)
def test_a_value_of_another_kind_is_one_line_that_names_the_argument(name, good):
    owner, _, method = name.rpartition(".")
    function = getattr(getattr(sh, owner), method) if owner else getattr(sh, name)
    parameters, met = inspect.signature(function).parameters, set()
    needed = {key: good[key] for key, one in parameters.items() if one.default is one.empty and key != "self"}
    if name in ("mean_divergence",):
        needed["student"] = good["reference"]
    for key, one in parameters.items():
        for value in WRONG if key != "self" else ():
            if not fits(value, _hint(function, one.annotation)) and value is not one.default:
                bound = owner and not isinstance(inspect.getattr_static(getattr(sh, owner), method), OF_CLASS)
                first = [good[owner]] if bound else []
                with pytest.raises(InputError, match=rf"^{key} .*: give "):
                    function(*first, **needed | {key: value})
                met.add(key)
    assert met.issuperset(HERE_TOO.get(name, ()))


def test_a_number_of_numpy_is_a_number(lm):
    assert type(sh.HealConfig(rank=np.int64(4), betas=[np.float32(0.5), 0.9]).rank) is int
    assert sh.HealConfig(betas=[0.5, 0.9]) == sh.HealConfig(betas=(0.5, 0.9))
    vector = sh.extract(lm, "be kind", "be cold", ["a", "b"], layers=np.int64(1))
    assert vector.layers == (1,) and type(vector.layers[0]) is int
    assert vector.random_like(np.int64(3)) == vector.random_like(3)


def test_a_vector_adds_to_vectors_alone_and_a_zero_one_has_no_direction(lm):
    vector = sh.extract(lm, "be kind", "be cold", ["a", "b"])
    for nonsense in (lambda: vector + 1, lambda: vector - "a"):
        with pytest.raises(TypeError, match="unsupported operand"):
            nonsense()
    with pytest.raises(InputError, match="zero at block"):
        (vector * 0).unit()


def test_a_walk_needs_something_that_samples_and_takes_any_iterable():
    with pytest.raises(InputError, match="needs sample or sample_together"):
        sh.walk_c(None, list)
    kept = sh.Completion("a", None, (1,), (2,), "b", True)
    walk = sh.walk_c(lambda kappa, n: (kept for _ in range(n)), list, sh.DoseConfig(n_min=4, batch=4))
    assert all(one is kept for one in walk.completions)


@pytest.mark.parametrize(("call", "words"), [
    (lambda: sh.Sampling(temperature=1e300), "a number that is finite and at most 3e\\+38"),
    (lambda: sh.Sampling(top_k=10**30), "a whole number of at most 63 bits"),
    (lambda: sh.RunConfig(doses=(0.5, float("inf"))), "numbers that is finite"),
    (lambda: sh.compare(*[sh.Metrics("", "", 0.0, "", ())] * 2, n_boot=0), "n_boot 0: give at least 100"),
])  # fmt: skip
def test_a_number_that_is_one_is_told_what_else_is_wrong(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_rows_of_another_tokenizer_are_refused(lm):
    row = completion(lm, 0, 5)
    for ids, words in (((10**9,), "another tokenizer"), ((-1,), "another tokenizer"), ("ab", "give one or more whole")):
        with pytest.raises(InputError, match=rf"^completion 0: token_ids .*{words}"):
            sh.reference_states(lm, [replace(row, token_ids=ids)])


def test_a_file_that_cannot_be_written_is_one_line(lm, tmp_path):
    vector = sh.extract(lm, "be kind", "be cold", ["a", "b"])
    for write in (vector.save, lambda path: sh.save_completions([], path)):
        for path in (tmp_path, tmp_path / "no" / "such" / "file"):
            with pytest.raises(NotWrittenError, match="cannot be written"):
                write(path)


def on_meta(lm):
    """The model's layout without numbers."""
    with torch.device("meta"):
        return type(lm.model)(lm.model.config)


SURROUNDINGS = {
    "meta device": lambda lm, heal: sh.wrap(on_meta(lm), lm.tokenizer),
    "not LM": lambda lm, heal: sh.wrap(lm, lm.tokenizer),
    "name 3": lambda lm, heal: sh.wrap(lm.model, lm.tokenizer, 3),
    "called with": lambda lm, heal: heal(reg=lambda logp: logp.sum(-1)),
    "ZeroDivisionError": lambda lm, heal: heal(reg=lambda logp, logq: 1 / 0),
    "inference_mode": lambda lm, heal: torch.inference_mode()(heal)(),
    "autocast": lambda lm, heal: torch.autocast("cpu", dtype=torch.bfloat16)(heal)(),
}


@pytest.mark.parametrize("said", SURROUNDINGS)
def test_models_functions_and_modes_that_give_no_figures_are_refused_in_one_line(said, lm, data, prev):
    def heal(**options):
        return sh.heal(lm, data, sh.HealConfig(epochs=1, rank=2, **options), prev)

    with pytest.raises(InputError, match=said) as found:
        SURROUNDINGS[said](lm, heal)
    assert "\n" not in str(found.value)
    heal()


def test_a_run_whose_adapter_fits_no_module_is_refused_before_its_folder(tmp_path):
    config = RunConfig(reg="kl_rev", fast_dev_run=True, target_modules=("nosuch",), out=str(tmp_path / "out"))
    with pytest.raises(InputError, match="nothing to adapt"):
        sh.run_rounds(config)
    assert not any(tmp_path.rglob("*.json*"))
