"""The compiled engine: the tokens of the plain one under every dose, what is replayed, and what it does not take."""

import json
from contextlib import contextmanager
from functools import partial

import pytest
import resume_runs
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from steer_heal.errors import InputError
from steer_heal.steering import extract
from steer_heal.texts import engines
from steer_heal.texts.engines import compiled
from steer_heal.texts.generation import Request, generate, generate_requests

PROMPTS = ["what should we do when it rains all day ?", "hi", "the gate"]
DOSES = (0.0, 2.0, -3.0)


@pytest.fixture
def ran(monkeypatch):
    """Passes through compiled blocks, in a list; the compiler traces them and leaves the rest as it is."""
    passes = []

    def backend(graph, inputs):
        return lambda *given: passes.append(1) or graph.forward(*given)

    monkeypatch.setattr(compiled, "BACKEND", backend)
    compiled.compiled_forward.cache_clear()
    torch._dynamo.reset()
    yield passes
    compiled.compiled_forward.cache_clear()
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def vector(tiny):
    return extract(tiny, "you are kind .", "you are strict .", PROMPTS)


def ids(completions):
    return [c.token_ids for c in completions]


def test_replies_under_a_dose_per_row_are_the_plain_engines(tiny, vector, ran):
    requests = [Request(p, d, i) for i, (p, d) in enumerate((p, d) for p in PROMPTS for d in DOSES)]
    for options in ({"seed": 1}, {"seed": 2}, {"greedy": True}):
        asked = partial(generate_requests, tiny, requests, vector, max_new_tokens=12, **options)
        before = len(ran)
        found = asked(engine=engines.engine("compiled"))
        assert ids(found) == ids(asked()) and len(ran) - before == 11 * len(tiny.blocks)
    plain = generate_requests(tiny, [Request(r.prompt, 0.0, r.row) for r in requests], greedy=True, max_new_tokens=12)
    assert ids(plain)[::3] == ids(found)[::3] and ids(plain) != ids(found)
    assert not any("forward" in block.__dict__ for block in tiny.blocks)


def test_another_dose_number_of_rows_and_the_weights_of_now_need_no_other_compilation(lm, vector, ran):
    first = partial(generate, lm, max_new_tokens=6, greedy=True, engine=engines.engine("compiled"))
    for n in (3, 2):  # a second number of rows makes one for all
        first(PROMPTS[:n], vector, (1.0,))
    made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with torch.no_grad():
        lm.blocks[1].mlp.down_proj.weight.mul_(-3)
    many = [*PROMPTS, "the gate is open", "we sing"]
    for vec, doses in ((None, (0.0,)), (vector, (5.0,))):
        assert ids(first(many, vec, doses)) == ids(generate(lm, many, vec, doses, max_new_tokens=6, greedy=True))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made


class Tape(TorchDispatchMode):
    """A CUDA graph on a CPU: what is launched within is launched again at `replay`, on the same memory.

    What a graph captures is not run; the first replay is left out, since here it was.
    """

    def __init__(self):
        super().__init__()
        self.launched, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.launched.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        self.replays += 1
        if self.replays == 1:
            return
        for function, args, kwargs, out in self.launched:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def taped(tape):
    with tape:
        yield


def test_a_captured_token_is_replayed_with_the_inputs_of_now_and_steering_in_it(tiny, vector, monkeypatch):
    made, real = [], compiled.CompiledStep
    monkeypatch.setattr(compiled, "CompiledStep", lambda blocks, captures: real(blocks, True))
    monkeypatch.setattr(compiled, "compiled_forward", lambda kind: kind.forward)  # a tape does not see what is compiled
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: made.append(Tape()) or made[-1])
    monkeypatch.setattr(torch.cuda, "graph", taped)
    passes = []
    counting = tiny.blocks[0].register_forward_hook(lambda *given: passes.append(1))
    requests = [Request(p, d, i) for i, (p, d) in enumerate((p, d) for p in PROMPTS for d in DOSES)]
    for seed in (1, 2):
        asked = partial(generate_requests, tiny, requests, vector, max_new_tokens=10, seed=seed)
        passes.clear()
        found = asked(engine=engines.engine("compiled"))
        assert len(passes) == 3 and made[-1].replays == 8  # the prompt, a first token, the captured one
        assert ids(found) == ids(asked())
    counting.remove()
    assert len(made) == 2


def test_inputs_of_another_shape_are_not_copied_into_a_graph():
    step = compiled.CompiledStep([], True)
    step.graph, step.given = object(), {"mask.full": torch.zeros(2, 3)}
    with pytest.raises(RuntimeError, match=r"mask.full has shape \(1, 3\) and had \(2, 3\)"):
        step(torch.nn.Linear(1, 1), {"mask": {"full": torch.zeros(1, 3)}, "use_cache": True})


def spoil_class(lm, patch):
    patch.setattr(type(lm.base), "_can_compile_fullgraph", False)


def spoil_devices(lm, patch):
    patch.setattr(lm.base, "hf_device_map", {"a": 0, "b": 1}, raising=False)


def spoil_hook(lm, patch):
    lm.blocks[0].mlp.register_forward_hook(lambda *given: None)


def spoil_forward(lm, patch):
    lm.blocks[0].forward = lm.blocks[0].forward


def spoil_weight(lm, patch):
    lm.blocks[0].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)


@pytest.mark.parametrize("spoil", [spoil_class, spoil_devices, spoil_hook, spoil_forward, spoil_weight])
def test_a_model_that_cannot_be_compiled_is_refused_in_one_line(lm, spoil, monkeypatch):
    spoil(lm, monkeypatch)
    with pytest.raises(InputError, match=r"^engine compiled: .*--engine transformers$"):
        generate(lm, PROMPTS, max_new_tokens=2, engine=engines.engine("compiled"))


def test_a_run_on_it_makes_the_texts_and_figures_of_the_plain_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "compiled_forward", lambda kind: kind.forward)  # compiled above
    folders = {}
    for name in ("transformers", "compiled"):
        (tmp_path / name).mkdir()
        folders[name] = resume_runs.go(tmp_path / name, engine=name, n_rounds=1)
    plain, found = ({p.name: p.read_bytes() for p in (f / "rounds" / "00").glob("*.jsonl")} for f in folders.values())
    assert plain and found == plain
    assert list(json.loads((folders["compiled"] / "environment.json").read_text())["engine"]) == ["compiled"]
