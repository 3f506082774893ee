"""Bad input: exit code 2 and one line on stderr that names the input, what is wrong and what to do; nothing is written.

Each case is a command line, `{files}` being the folder of broken files, and words that its complaint must hold.
"""

import os
import subprocess
import sys

import pytest
from bad_files import make_models, make_runs, make_traits, make_vectors

from steer_heal.commands.main import main

OPTIONS = [
    ("run --n-round 2", "unknown option --n-round", "--n-rounds"),
    ("run --lamda 1", "unknown option --lamda", "--lam"),
    ("run --model_nam pocket", "--model-nam", "--model"),
    ("run --zzzz", "unknown option --zzzz", "--help"),
    ("run -x", "unknown option -x", "--help"),
    ("run stray", "'stray'", "--help"),
    ("run --quiet yes", "'yes'", "--help"),
    ("run --no-quiet", "--no-quiet", "--quiet"),
    ("run --quiet --verbose", "--quiet and --verbose", "leave one of them out"),
    ("run --resume=", "--resume is empty", "leave it out"),
    ("run --resume", "--resume without a value", "give a text"),
    ("run --model=", "--model is empty", "leave it out"),
    ("run --trait=", "--trait is empty", "leave it out"),
    ("run --out=", "--out is empty", "leave it out"),
    ("run --preset=", "unknown preset ''", "gemma-3-4b"),
    ("run --reg=", "--reg is empty", "leave it out"),
    ("run --n-rounds=", "--n-rounds", "a whole number"),
    ("run --dry-run --resume {files}/runs/sound", "--dry-run", "leave it out to resume"),
    ("--versoin", "unknown option --versoin", "steer-heal --help"),
    ("doctor extra", "'extra'", "--help"),
    ("doctor --model=", "''", "saved by transformers"),
    ("doctor --device nope", "'nope' is unknown", "cpu"),
    ("traits list pocket-care", "takes no 'pocket-care'", "give show"),
    ("chat pocket --dose", "--dose without a value", "a number"),
    ("compare", "0 runs given", "at least two"),
    ("export {files}/runs/sound --to /proc/nowhere", "/proc/nowhere", "choose another"),
    ("run --lam-rate abc", "--lam-rate abc", "a number", "1.0"),
    ("run --lam=abc", "--lam abc", "a number"),
    ("run --lam", "--lam without a value", "a number"),
    ("run --epochs 1.5", "--epochs 1.5", "a whole number"),
    ("run --seed None", "--seed None", "a whole number"),
    ("run --dtype int8", "--dtype int8", "bfloat16"),
    ("run --walk-mode up", "--walk-mode up", "bisect"),
    ("run --layers 0.1", "--layers 0.1", "2 numbers or auto"),
    ("run --betas 0.9 x", "--betas 0.9 x", "2 numbers"),
    ("run --doses a b", "--doses a b", "one or more numbers"),
    ("run --preset gema-3", "unknown preset 'gema-3'", "gemma-3-4b"),
    ("run --help hea", "'hea'", "did you mean 'heal'"),
    ("rnu", "unknown command 'rnu'", "did you mean 'run'"),
    ("report", "RUN", "--help"),
    ("report {runs}/sound b", "'b'", "--help"),
    ("export {files}/runs/sound", "--to is missing", "--help"),
    ("chat --prompt hi", "give SOURCE before --prompt", "--help"),
    ("chat pocket --prompt", "--prompt without a value", "one or more texts"),
    ("chat pocket --promt hi", "--promt", "did you mean --prompt"),
    ("chat pockt --prompt hi", "model 'pockt'", "did you mean 'pocket'"),
    ("doctor --modle pocket", "--modle", "did you mean --model"),
]
VALUES = [
    ("run --reg kl", "'kl'", "kl_rev"),
    ("run --reg nowhere:f", "nowhere", "imported"),
    ("run --lam -1", "lam -1", "at least 0"),
    ("run --tau nan", "tau nan", "give a number"),
    ("run --lr 0", "lr 0", "above 0"),
    ("run --kl-agg median", "'median'", "rmse"),
    ("run --reference both-of-them", "'both-of-them'", "prev"),
    ("run --warmup 1", "warmup 1", "0 to below 1"),
    ("run --lora-layers 0.9 0.1", "0.9", "low <= high"),
    ("run --rank 0", "rank 0", "above 0"),
    ("run --epochs 0", "epochs 0", "above 0"),
    ("run --n-rounds 0", "n_rounds 0", "at least 1"),
    ("run --replay 1.5", "replay 1.5", "share"),
    ("run --replay-anchors -1", "replay_anchors -1", "share"),
    ("run --replay 0.5 --replay-anchors 0.5", "together", "lower one"),
    ("run --layers 0.9 0.1", "0.9", "low <= high"),
    ("run --doses -1", "doses (-1.0,)", "at least 0"),
    ("run --doses", "--doses without a value", "one or more numbers"),
    ("run --threads 100000", "threads 100000", "cores", "at most"),
    ("run --reg os:system", "'os:system' cannot be used", "TypeError", "logp_student"),
    ("run --model pocket --attn-implementation foo", "--attn-implementation 'foo'", "eager", "leave it out"),
    ("run --target-kl -1", "target_kl -1", "nats"),
    ("run --text-temperature 0", "temperature 0", "above 0"),
    ("run --temperature -1", "temperature -1", "above 0"),
    ("run --top-p 1.5", "top_p 1.5", "at most 1"),
    ("run --kappa-floor 3", "kappa", "kappa_floor <= kappa_start"),
    ("run --kappa-shrink 1", "shrink 1", "between 0 and 1"),
    ("run --survival-target 2", "target 2", "between 0 and 1"),
    ("run --walk-batches 0", "batches 0", "at least 1"),
    ("run --false-drop 0.9", "false_drop 0.9", "share"),
    ("run --eval-replies 2", "eval_replies 2", "at least 8"),
    ("run --eval-items 2", "eval_items 2", "at least 8"),
    ("run --coherence-floor -0.1", "coherence_floor -0.1", "share"),
    ("run --max-drop 2", "max_drop 2", "share"),
    ("run --max-reverts 0", "max_reverts 0", "at least 1"),
    ("run --max-new-tokens 1", "max_new_tokens 1", "at least 4"),
    ("run --model tiny-random --max-new-tokens 100000", "context of tiny-random", "--max-new-tokens"),
    ("run --device cuda", "'cuda' is not available", "--device cpu"),
    ("run --device cpu:x", "'cpu:x' is unknown", "auto"),
    ("run --device tpu", "'tpu' is unknown", "cpu"),
    ("run --device cuda:9x", "not available", "--device cpu"),
    ("run --out {files}/outside.txt", "outside.txt' cannot be written", "--out"),
    ("run --out {files}/outside.txt/below", "cannot be written", "--out"),
    ("run --out /proc/nowhere", "cannot be written", "--out"),
    ("chat tiny-random --prompt=", "--prompt is empty", "at least one word"),
    ("chat tiny-random --prompt hi --max-new-tokens 0", "--max-new-tokens 0", "at least 1"),
    ("chat pocket --prompt xylophonic/quux", "knows almost nothing", "another model"),
    ("chat tiny-random --prompt hi --dose nan", "numbers", "dose"),
    ("doctor --dtype int8", "'int8'", "bfloat16"),
]
TRAITS = [
    ("run --trait pocket-car", "unknown trait 'pocket-car'", "did you mean 'pocket-care'"),
    ("run --trait {files}/nowhere.toml", "nowhere.toml", "check the path"),
    ("run --trait {files}/traits", "unknown trait", ".toml file"),
    ("run --trait {traits}/empty.toml", "'name' is missing", "add it"),
    ("run --trait {traits}/syntax.toml", "not valid TOML", "line 2", "column"),
    ("run --trait {traits}/unclosed.toml", "not valid TOML", "line 1", "column"),
    ("run --trait {traits}/latin.toml", "line 2", "UTF-8"),
    ("run --trait {traits}/unknown_key.toml", "'contxts'", "did you mean 'contexts'"),
    ("run --trait {traits}/no_neg.toml", "'neg' is missing", "add it"),
    ("run --trait {traits}/same.toml", "the same", "two opposite"),
    ("run --trait {traits}/number.toml", "line 2", "'pos' must be"),
    ("run --trait {traits}/no_prompts.toml", "'prompts' is empty", "at least one"),
    ("run --trait {traits}/blank_prompt.toml", "'prompts'", "non-empty strings"),
    ("run --trait {traits}/few_eval.toml", "eval_prompts", "at least 8"),
    ("run --trait {traits}/overlap.toml", "also stands in 'prompts'", "hold it out"),
    ("run --trait {traits}/away.toml", "outside the trait's folder", "beside"),
    ("run --trait {traits}/absolute.toml", "outside the trait's folder", "beside"),
    ("run --trait {traits}/link.toml", "outside the trait's folder", "beside"),
    ("run --trait {traits}/missing_file.toml", "nowhere.txt", "was not found"),
    ("run --trait {traits}/empty_list.toml", "empty.txt is empty", "one entry"),
    ("run --trait {traits}/latin_list.toml", "latin.txt, line 1", "UTF-8"),
    ("run --trait {traits}/empty_items.toml", "'items' is empty", "at least one"),
    ("run --trait {traits}/broken_items.toml", "broken.jsonl, line 1", "not valid JSON"),
    ("run --trait {traits}/twice.toml", "id '1' was used before", "unique"),
    ("run --trait {traits}/one_choice.toml", "1 distinct choices", "at least 2"),
    ("run --trait {traits}/no_choice.toml", "'maybe' is not among", "name one"),
    ("run --trait {traits}/column.toml", "'catgory'", "did you mean 'category'"),
    ("run --trait {traits}/template.toml", "choice_template", "{prompt}"),
    ("run --trait {traits}/checker_away.toml", "'../outside' is no module name", "beside"),
    ("run --trait {traits}/checker_link.toml", "leads out of the folder", "itself"),
    ("run --trait {traits}/checker_none.toml", "nowhere", "cannot be imported"),
    ("run --trait {traits}/checker_raises.toml", "ValueError: no way", "correct it"),
    ("run --trait {traits}/checker_form.toml", "'check'", "module:function"),
    ("run --trait {traits}/long_prompt.toml", "trait own, prompts", "does not fit", "shorten"),
    ("run --trait {traits}/long_context.toml", "trait own, contexts", "does not fit", "shorten"),
    ("run --anchors {files}/nowhere.jsonl", "nowhere.jsonl", "check the path"),
    ("run --anchors {files}/anchors/empty.jsonl", "is empty", "at least one"),
    ("run --anchors {files}/anchors/twice.jsonl", "line 2", "'a' was used before"),
    ("run --anchors {files}/anchors/column.jsonl", "'anser'", "did you mean 'answer'"),
    ("run --anchors {files}/anchors/missing.jsonl", "'prompt' is missing", "add it"),
    ("run --anchors {files}/anchors/regex.jsonl", "not a regular expression"),
    ("run --anchors {files}/anchors/check.jsonl", "'nearly'", "exact"),
    ("run --anchors {files}/anchors/function.jsonl", "is no module name", "beside"),
    ("run --eval-vignettes {files}/nowhere.jsonl", "nowhere.jsonl", "check the path"),
    ("run --eval-vignettes {files}/vignettes.jsonl", "unknown foundation 'Car'", "did you mean 'Care'"),
    ("traits shwo", "'shwo'", "did you mean 'show'"),
    ("traits show", "name a built-in trait"),
    ("traits show pocket-car", "unknown trait", "did you mean 'pocket-care'"),
    ("traits check", "name a built-in trait"),
    ("traits check {files}/nowhere.toml", "nowhere.toml", "no such file"),
    ("traits check {traits}/syntax.toml", "not valid TOML", "line 2"),
]
MODELS = [
    ("run --model pockett", "neither embedded", "check the spelling"),
    ("run --model ./nowhere", "neither embedded", "folder"),
    ("run --model a/b/c", "neither embedded", "check the spelling"),
    ("run --model {models}/nothing", "no config.json", "saved by transformers"),
    ("run --model {models}/no_config", "no config.json", "saved by transformers"),
    ("run --model {models}/no_weights", "holds no weights", "safetensors"),
    ("run --model {models}/no_tokenizer", "has no tokenizer", "save it beside"),
    ("run --model {models}/pickled", "only pytorch_model.bin", "never read", "safetensors"),
    ("run --model {models}/broken_config", "config.json is not a valid JSON", "save the model again"),
    ("run --model {models}/empty_config", "cannot be loaded", "model_type"),
    ("run --model {models}/broken_tokenizer", "cannot be loaded", "tokenizer"),
    ("run --model {models}/truncated", "cannot be loaded", "safetensors"),
    ("run --model {models}/garbage", "cannot be loaded", "header too large"),
    ("run --model {models}/foreign_tokenizer", "belongs to another model", "480"),
    ("run --model {models}/unknown_kind", "nonesuch", "cannot be loaded"),
    ("run --model {models}/more_blocks", "weights are not in its files", "layers.4"),
    ("run --model {models}/other_shape", "another shape", "belong together"),
    ("run --model {models}/own_code", "custom code", "cannot be loaded"),
    ("run --model {models}/encoder", "not in its files", "causal language model"),
    ("run --model {models}/gap_filler", "is an encoder", "decoder-only"),
    ("run --model {models}/encoder_decoder", "is an encoder-decoder", "decoder-only"),
    ("run --dry-run --model {models}/no_config", "no config.json", "saved by transformers"),
    ("doctor --model {models}/pickled", "never read", "safetensors"),
    ("chat {models}/no_tokenizer --prompt hi", "has no tokenizer", "save it beside"),
    ("chat tiny-random --prompt hi --vector {files}/nowhere", "nowhere", "no such file"),
    ("chat tiny-random --prompt hi --vector {files}/vectors/wide.safetensors", "width 32", "extract one"),
    ("chat tiny-random --prompt hi --vector {files}/vectors/deep.safetensors", "9 blocks", "extract one"),
    ("chat tiny-random --prompt hi --vector {files}/vectors/tensors.safetensors", "not a steering vector"),
    ("chat tiny-random --prompt hi --vector {files}/vectors/text.safetensors", "not a steering vector"),
    ("chat tiny-random --prompt hi --vector {files}/vectors/pickled.pt", "not a steering vector"),
]
RUNS = [
    ("report {files}/nowhere", "does not exist", "out/"),
    ("report {files}/outside.txt", "does not exist", "out/"),
    ("report {files}/traits", "no run folder", "out/"),
    ("report {runs}/no_config", "no run folder", "config.json"),
    ("report {runs}/broken_config", "config.json: damaged", "restore"),
    ("report {runs}/list_config", "config.json: damaged", "restore"),
    ("report {runs}/other_version", "schema 99", "reads 1"),
    ("report {runs}/no_events", "no events.jsonl"),
    ("report {runs}/cut_events", "events.jsonl, line", "damaged", "restore"),
    ("report {runs}/binary_events", "events.jsonl: cannot be read", "restore"),
    ("report {runs}/unfinished", "not finished", "run it again"),
    ("report {runs}/no_stage", "events.jsonl, line 1", "no stage"),
    ("report {runs}/poor_end", "the end event has no 'verdict'", "restore"),
    ("compare {runs}/nowhere", "does not exist", "give one"),
    ("compare {runs}/sound", "1 run given", "at least two different ones"),
    ("compare {runs}/sound {runs}/unfinished", "not finished", "run it again"),
    ("compare {runs}/sound {runs}/no_shift", "an event lacks 'shift'", "damaged"),
    ("compare {files}/traits", "holds no finished run", "give run folders"),
    ("export {runs}/sound --to {files}/traits", "is not empty", "does not exist yet"),
    ("export {runs}/sound --to {files}/outside.txt", "is a file", "does not exist yet"),
    ("export {runs}/sound --to {files}/outside.txt/below", "is a file", "another folder"),
    ("export {runs}/unfinished --to new", "not finished", "run it again"),
    ("export {runs}/escaping --to new", "folded ['../..']", "restore"),
    ("export {runs}/nothing_stands --to new", "no round stands", "original model"),
    ("export {runs}/no_adapter --to new", "cannot be read", "PEFT adapter"),
    ("export {runs}/broken_adapter --to new", "cannot be read", "PEFT adapter"),
    ("export {runs}/other_model --to new", "has no tokenizer", "save it beside"),
    ("export {runs}/sound --to new --device cuda", "not available", "--device cpu"),
    ("chat {runs}/no_vector --prompt hi", "vector.safetensors", "no such file"),
    ("chat {runs}/own_trait --prompt hi --trait pocket-care", "--trait 'pocket-care'", "leave it out"),
    ("export {runs}/sound --to new --merged --bias", "--merged and --bias", "give one"),
    ("export {runs}/sound --to new --rank 0", "--rank 0", "at least 1"),
    ("export {runs}/sound --to new --scales 0.5 3", "c 3", "from -1 to 1.5"),
    ("export {runs}/sound --to new --base pockett", "'pockett'", "did you mean 'pocket'"),
    ("export {runs}/sound --to new --trait nosuch", "'nosuch'", "give one of"),
    ("push nosuch --repo me/x", "'nosuch'", "steer-heal export"),
    ("push {runs}/sound", "--repo is missing", "--help"),
]
CASES = [*OPTIONS, *VALUES, *TRAITS, *MODELS, *RUNS]


@pytest.fixture(scope="module")
def files(tmp_path_factory, fast_run):
    """All broken files; made once, and nothing may change them."""
    root = tmp_path_factory.mktemp("bad")
    make_traits(root)
    make_models(root)
    make_vectors(root)
    make_runs(root, fast_run)
    return root


@pytest.fixture(scope="module")
def untouched(files):
    """What the folder is made of."""
    return state(files)


def words_of(command: str, root) -> list[str]:
    places = {"files": root, "traits": root / "traits", "models": root / "models", "runs": root / "runs"}
    words = [word.format(**places) for word in command.split()]
    fast = words[0] == "run" and not {"--help", "tiny-random"} & set(words)
    return [*words, *(["--fast-dev-run"] if fast else [])]


def state(folder) -> dict[str, tuple]:
    """Every file under the folder with its size and time of change; folders too."""
    found = ((str(path), path.lstat()) for path in folder.rglob("*"))
    return {path: (known.st_size, known.st_mtime_ns, known.st_mode) for path, known in found}


def test_the_table_is_long_enough_and_each_case_stands_once():
    assert len(CASES) >= 80 and len({command for command, *_ in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[command for command, *_ in CASES])
def test_bad_input_is_one_clear_line_with_exit_code_2(case, files, untouched, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # on any machine
    command, *expected = case
    assert main(words_of(command, files)) == 2
    shown = capfd.readouterr()
    assert shown.out == "" and shown.err.startswith("steer_heal: ") and shown.err.count("\n") == 1, shown.err
    for words in expected:
        assert words in shown.err, (words, shown.err)
    assert "Traceback" not in shown.err and len(shown.err) < 700
    assert state(files) == untouched and not list(tmp_path.iterdir())


def test_a_process_of_its_own_prints_no_other_line(files, tmp_path):
    """Warnings of libraries, which tests capture elsewhere, would show here."""
    cases = [words_of(command, files) for command, *_ in MODELS if command.startswith("run --model {models}")]
    script = f"import sys; from steer_heal.commands.main import main; sys.exit(sum(main(c) != 2 for c in {cases!r}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 0 and done.stdout == "" and len(lines) == len(cases)
    assert all(line.startswith("steer_heal: ") for line in lines)
    assert not list(tmp_path.iterdir())  # no model's own code ran


@pytest.mark.parametrize("command", ["run --model someone/some-model", "run --dry-run --model someone/some-model"])
def test_hub_id_without_network_says_so_within_seconds(command, tmp_path, capfd, monkeypatch):
    import time

    from steer_heal.model import loading

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    loading._hub_answers.cache_clear()
    started = time.monotonic()
    assert main(command.split()) == 2
    loading._hub_answers.cache_clear()
    shown = capfd.readouterr().err
    assert time.monotonic() - started < 8 and shown.count("\n") == 1
    assert all(words in shown for words in ("cannot be reached", "pocket", "tiny-random", "folder", "some-model"))


def test_a_cached_model_loads_without_network_and_without_waiting(files, monkeypatch):
    import time

    from steer_heal import model as lm
    from steer_heal.model import loading

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    cached = str(files / "models" / "sound")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, local_files_only: cached)
    loading._hub_answers.cache_clear()
    started = time.monotonic()
    assert lm.load("someone/some-model").name == "someone/some-model" and time.monotonic() - started < 8
    loading._hub_answers.cache_clear()


def test_debug_shows_the_traceback_of_bad_input(capsys):
    for words in (["run", "--lam", "-1", "--debug"], ["--debug", "run", "--lam", "-1"]):
        assert main(words) == 2
        shown = capsys.readouterr().err
        assert "Traceback" in shown and shown.splitlines()[-1].startswith("steer_heal: lam -1")


def test_an_unexpected_exception_stays_a_traceback(monkeypatch):
    from steer_heal.loop import rounds

    def broken(*arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(rounds, "run_rounds", broken)
    with pytest.raises(ZeroDivisionError):
        main(["run", "--fast-dev-run"])
