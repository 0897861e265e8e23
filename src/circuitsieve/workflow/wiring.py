"""The edges of a run: found between the nodes of its circuit, kept in its folder, put on its card."""

from circuitsieve.evaluation.edges import EdgeConfig, FoundEdges, find_edges
from circuitsieve.runs.folder import RunFolder
from circuitsieve.workflow.judging import load_run_model, run_pairs
from circuitsieve.workflow.reporting import Reporter


def wire_run(
    path: str, reporter: Reporter, config: EdgeConfig, *, device: str | None = None
) -> tuple[RunFolder, FoundEdges]:
    """Find the edges of a run's circuit and write edges.safetensors, edges.json and, where there is one, the card.

    Args:
        path: the run folder.
        reporter: is told how it goes.
        config: how edges are chosen.
        device: where the model runs; that of the run if not given.

    Raises:
        RunError: the folder is damaged, or the model is not the one that the circuit was found in.
        UnsupportedModel: heads of this family do not add up.
        ConfigError: the circuit has no edges.
    """
    folder = RunFolder.open(path)
    circuit, _ = folder.read_circuit()
    loaded = load_run_model(folder, device)
    found = find_edges(loaded.model, circuit, run_pairs(folder, loaded), config, reporter.evaluation)
    with folder.locked():
        folder.write_edges(found.edges, found.to_dict())
        if folder.has("card.json"):
            folder.write_json("card.json", {**folder.read_json("card.json"), "edges": found.to_dict()})
    return folder, found
