"""What the source never does, read off its syntax: unpickle, evaluate text, run code that comes with a model."""

import ast
from importlib import resources
from pathlib import Path

import pytest

SOURCES = sorted(Path(str(resources.files("circuitsieve"))).rglob("*.py"))
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
"""By their own names: `model.eval()` and `re.compile()` are something else."""
METHODS = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.hub.load",
    "np.load",
    "np.save",
    "numpy.load",
    "pd.read_pickle",
    "os.system",
    "subprocess.run",
}
FROM_FILES = {"from_pretrained", "from_config", "load"}
"""Methods of transformers' Auto classes that may run code of a model; `load` is how `from_pretrained` is called untyped."""
AUTO = {"AutoConfig", "AutoModelForCausalLM", "AutoTokenizer", "load"}


def findings(code: str) -> list[str]:
    """What a source does that it should not do."""
    tree = ast.parse(code)
    found = []
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)):
                found += [module] * (module.split(".")[0] in MODULES)
                found += [f"{module}.{name.name}" for name in node.names if f"{module}.{name.name}" in METHODS]
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                found.append(name)
            case ast.Attribute() if ast.unparse(node) in METHODS:
                found.append(ast.unparse(node))
            case ast.keyword(arg="trust_remote_code" | "weights_only" | "allow_pickle", value=value):
                off = isinstance(value, ast.Constant) and value.value is False
                found += [] if off and node.arg != "weights_only" else [ast.unparse(node)]
    return found


def trusting(code: str) -> list[str]:
    """Calls of transformers' Auto classes that leave it open whether code of the model is run: it would ask at a terminal."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [
        ast.unparse(call)
        for call in calls
        if ast.unparse(call.func).split(".")[0] in AUTO
        and ast.unparse(call.func).split(".")[-1] in FROM_FILES
        and not any(keyword.arg == "trust_remote_code" for keyword in call.keywords)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_nothing_is_unpickled_or_evaluated(path: Path):
    assert findings(path.read_text("utf-8")) == []


def test_code_of_models_is_refused_wherever_models_are_read():
    settings = {path.name: trusting(path.read_text("utf-8")) for path in SOURCES}
    assert {name: calls for name, calls in settings.items() if calls} == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import yaml.loader",
        "from pickle import loads",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "read = torch.load",
        "np.load('x')",
        "np.memmap('x', allow_pickle=True)",
        "eval('1')",
        "exec(text)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=trusted)",
    ],
)
def test_it_would_be_noticed(code: str):
    assert findings(code)


def test_an_open_question_would_be_noticed():
    assert trusting("AutoConfig.from_pretrained(name)")
    assert trusting("load(source, dtype=dtype)")
    assert not trusting("AutoConfig.from_pretrained(name, trust_remote_code=False)")
    assert not findings("model.eval(); re.compile('x'); AutoConfig.from_pretrained(name, trust_remote_code=False)")
