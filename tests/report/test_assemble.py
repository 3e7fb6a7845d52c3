"""The figures that the report takes from a run, and what it leaves out where a job was not run."""

import json

import numpy as np
import pytest
from results import stages

from hubert_jax.errors import InputError
from hubert_jax.report import figures
from hubert_jax.report.assemble import ReportConfig, assemble

CONFIG = ReportConfig("<Run>", iterations=("it1", "it2"), recognisers=("pretrained", "scratch"))

TABLE = """\
Target quality (phone-normalised mutual information, PNMI)
                       it1, K = 100  untrained  it2, K = 100  untrained
  MFCC, K = 100               0.330                    0.330
  targets of training         0.336                    0.340
  layer 0                     0.240      0.220         0.380      0.220
  layer 2                     0.341      0.238         0.341      0.238
  layer 10                    0.300          -         0.300          -
  best layer                      2                        0

Prediction of masked units
       accuracy  majority baseline
  it1     0.212              0.041
  it2     0.030              0.041

Speech recognition
              WER, greedy  CER, greedy  WER, search  CER, search  started from
  pretrained      100.0 %      100.0 %       81.2 %       38.0 %  weights of it2
  scratch         100.0 %      100.0 %       97.1 %       38.0 %  scratch

Largest absolute difference of exported networks
  it2         2.4e-06
  pretrained  1.1e-06

Seconds
  prepare              1400.0  skipped in this run
  it1/label              20.1
  it1/train              20.1
  it1/evaluate           20.1
  it2/label              20.1
  it2/train              20.1
  it2/evaluate           20.1
  pretrained/finetune    20.1
  pretrained/decode      20.1
  scratch/finetune       20.1
  scratch/decode         20.1
  it2/export             20.1
  pretrained/export      20.1
  total                1641.7

Claims
  holds
  yes    best layer 0 of it2: PNMI 0.380 > MFCC 0.330
  yes    it1, layer 2: PNMI 0.341 > untrained 0.238
  yes    it1: masked accuracy 0.212 > majority baseline 0.041
  yes    it2, layer 0: PNMI 0.380 > untrained 0.220
  NO     it2: masked accuracy 0.030 <= majority baseline 0.041
  yes    it2: best PNMI 0.380 > it1 0.341
  yes    WER 81.2 % pretrained < 97.1 % scratch
  NO     CER 38.0 % pretrained >= 38.0 % scratch
  yes    WER 81.2 % pretrained, beam search < 100.0 % greedy

verdict: best layer 0 of it2: PNMI 0.380 > MFCC 0.330; 7 of 9 hold

Clusters of layer 0 of it2 remove 38.0% of the uncertainty about a frame's phone; clusters of MFCC \
33.0%, the same layer before training 22.0%.

Targets made from its own layers bring it2 to 38.0%; it1 34.1%.

Of new speakers' letters 100.0% are wrong with pre-training (pretrained) and 100.0% without \
(scratch); beam search brings the word error rate from 100.0% to 81.2%.
"""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Figures stay empty: what they show is tested elsewhere, and drawing takes seconds."""
    monkeypatch.setattr(figures, "_svg", lambda figure, label: f"<svg aria-label='{label}'></svg>")


def change(workdir, job, **values):
    path = workdir / job / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_table(workdir, capsys):
    assemble(workdir, CONFIG, stages(workdir), ["prepare"])
    assert capsys.readouterr().out == f"\n{TABLE}\nreport: {workdir}/report.html\n"


def test_report_json(workdir):
    report = assemble(workdir, CONFIG, stages(workdir), ["prepare"])
    assert json.loads((workdir / "report.json").read_text()) == report
    assert report["mfcc"]["k"] == 100
    # Of the fit made like the layers' codebooks, although the training targets' is higher.
    assert report["mfcc"]["pnmi"] == report["mfcc"]["pnmi_as_layers"] == 0.3301
    assert report["mfcc"]["pnmi_as_targets"] == 0.336
    first, second = report["iterations"]
    assert first["best_layer"] == 2
    assert first["pnmi_by_layer"] == {"0": 0.24, "2": 0.3412, "10": 0.3}
    assert first["masked_accuracy"] == 0.2124
    assert first["commonest_unit_share"] == 0.0411
    assert second["untrained_pnmi_by_layer"] == {"0": 0.22, "2": 0.238}
    assert (first["started_from"], second["started_from"]) == ("scratch", "weights of it1")
    assert (first["targets"], second["targets_pnmi"]) == ({"kind": "mfcc"}, 0.34)
    assert report["wer"] == {"pretrained": 0.812, "scratch": 0.971}
    assert report["cer"] == {"pretrained": 0.38, "scratch": 0.38}
    assert report["export"]["max_abs_difference"] == 2.4e-6
    assert report["seconds"] == {"prepare": 1400.0} | dict.fromkeys(
        list(report["seconds"])[1:], 20.14
    )
    assert report["skipped"] == ["prepare"]
    assert report["corpus"]["train & more"]["speakers"] == 18
    assert report["model"]["parameters"] == 7_123_456
    assert report["versions"]["jax"] == "0.0.7"


@pytest.mark.parametrize(
    "differing",
    [
        ("it2/train", {"architecture": {"num_layers": 4}}),
        ("it2/evaluate", {"k": 500}),
        ("it2/evaluate", {"frame_rate": 100}),
    ],
)
def test_an_untrained_network_stands_for_those_that_are_scored_alike_only(workdir, differing):
    job, values = differing
    change(workdir, job, **values)
    first, second = assemble(workdir, CONFIG, stages(workdir), [])["iterations"]
    assert first["untrained_pnmi_by_layer"] == {"0": 0.22, "2": 0.238}
    assert second["untrained_pnmi_by_layer"] == {}


def test_what_a_probe_and_abx_found_has_a_table(workdir, capsys):
    probe = {"frame_accuracy": 0.6123, "phone_error_rate": 0.451}
    mfcc = {"k": 100, "pnmi": 0.3301, "phone_purity": 0.4, "cluster_purity": 0.2, "probe": probe}
    mfcc |= {"abx": {"within": 0.1, "across": None}}
    layers = [{"layer": 2, "over_mfcc": {"pnmi": 0.011, "utterances": [0.0071, 0.0149]}}]
    layers[0] |= {"probe": probe, "abx": {"within": 0.08, "across": 0.125}}
    weighted = probe | {"layer_weights": [0.2, 0.8], "frame_accuracy": 0.7}
    change(workdir, "it1/evaluate", mfcc=mfcc, layers=layers, untrained_weighted_sum=weighted)
    change(workdir, "it2/evaluate", pnmi_by_layer={"0": 0.2}, best_layer=0)
    report = assemble(workdir, CONFIG, stages(workdir), [])
    expected = """\
Phones by a linear probe, and ABX error
                                frame accuracy  phone error rate  ABX within speakers  across
  MFCC                                  61.2 %            45.1 %               10.0 %       -
  it1, weighted sum, untrained          70.0 %            45.1 %                    -       -
  it1, layer 2                          61.2 %            45.1 %                8.0 %  12.5 %

"""
    out = capsys.readouterr().out
    assert expected in out
    note = "(difference +0.007 to +0.015 (95 %, utterances drawn))"
    assert f"best layer 2 of it1: PNMI 0.341 > MFCC 0.330 {note}" in out
    assert report["features"]["it1, weighted sum, untrained"] == {"probe": weighted}
    assert "A linear classifier" in (workdir / "report.html").read_text()


def test_pnmi_at_both_rates_where_it_was_scored_so(workdir, capsys):
    path = workdir / "it1/evaluate/result.json"
    labels = json.loads(path.read_text())["labels"]
    labels[0]["pnmi_by_rate"] = {"50": 0.336, "100": 0.329}
    layers = [{"layer": 2, "pnmi_by_rate": {"50": 0.3412, "100": 0.334}}]
    change(workdir, "it1/evaluate", labels=labels, layers=layers)
    assemble(workdir, CONFIG, stages(workdir), [])
    said = [line.split() for line in capsys.readouterr().out.splitlines() if " Hz " in line]
    assert [line[:-1] for line in said] == [
        ["targets", "at", "50", "Hz", "0.336"],
        ["targets", "at", "100", "Hz", "0.329"],
        ["best", "layer", "at", "50", "Hz", "0.341"],
        ["best", "layer", "at", "100", "Hz", "0.334"],
    ]


def test_scores_after_steps_stand_beside_those_without(workdir, capsys):
    after = {"after_steps": {"steps": ["mean", "smooth 3"], "pnmi": 0.3741}}
    mfcc = {"k": 100, "pnmi": 0.3301, "phone_purity": 0.4, "cluster_purity": 0.2, **after}
    after = {"after_steps": {"steps": ["mean", "smooth 3"], "pnmi": 0.3652}}
    change(workdir, "it1/evaluate", mfcc=mfcc, layers=[{"layer": 2, **after}])
    assemble(workdir, CONFIG, stages(workdir), [])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "mean" in line]
    assert rows == [
        ["MFCC", "after", "mean,", "smooth", "3", "0.374", "0.374"],
        ["best", "layer", "after", "mean,", "smooth", "3", "0.365", "-"],
    ]


def test_intervals_between_iterations_are_of_the_same_utterances_drawn(workdir):
    random = np.random.default_rng(0)
    draws = {"it1": random.normal(0.34, 0.01, 500)}
    draws["it2"] = draws["it1"] + random.normal(0.04, 0.001, 500)
    common = dict(audio_digest="a", alignments_digest="b", missing_alignments=0, draws=500, seed=0)
    for name, best in (("it1", "layer_2"), ("it2", "layer_0")):
        change(workdir, f"{name}/evaluate", **common)
        np.savez(workdir / name / "evaluate/draws.npz", **{best: draws[name]})
    first, second = assemble(workdir, CONFIG, stages(workdir), [])["iterations"]
    low, high = second["over"]["it1"]
    assert 0.03 < low < 0.38 - 0.3412 < high < 0.05 and high - low < 0.005
    np.testing.assert_allclose(first["over"]["it2"], [-high, -low], atol=1e-9)
    change(workdir, "it2/evaluate", seed=1)
    first, second = assemble(workdir, CONFIG, stages(workdir), [])["iterations"]
    assert first["over"] == second["over"] == {}


@pytest.mark.parametrize("controls", [("it3=a",), ("it2",), ("it2=it1",), ("it2=",)])
def test_controls_are_of_iterations(controls):
    with pytest.raises(InputError, match="config.report.controls: found"):
        ReportConfig("", ("it1", "it2"), controls=controls)


def test_speech_without_transcripts_has_no_rates(workdir, capsys):
    change(workdir, "scratch/decode", wer={"greedy": None}, cer={"greedy": None})
    report = assemble(workdir, CONFIG, stages(workdir), [])
    assert report["wer"] == {"pretrained": 0.812, "scratch": None}
    assert ["scratch", *"----", "scratch"] in map(str.split, capsys.readouterr().out.splitlines())


def test_greedy_rates_where_there_was_no_beam_search(workdir):
    change(workdir, "scratch/decode", wer={"greedy": 0.9}, cer={"greedy": 0.5})
    report = assemble(workdir, CONFIG, stages(workdir), [])
    assert (report["wer"]["scratch"], report["cer"]["scratch"]) == (0.9, 0.5)


def test_weights_from_elsewhere_are_named_as_the_configuration_names_them(workdir):
    change(workdir, "pretrained/finetune", init_from="hf:base", inputs={"init_from": "other"})
    assert (
        assemble(workdir, CONFIG, stages(workdir), [])["started_from"]["pretrained"]
        == "weights of hf:base"
    )


def test_an_export_that_was_not_compared_has_no_difference(workdir, capsys):
    change(workdir, "it2/export", max_abs_difference=None)
    assert assemble(workdir, CONFIG, stages(workdir), [])["export"]["max_abs_difference"] is None
    assert "it2         not compared\n" in capsys.readouterr().out


# Jobs that are not run, and what the page and the table then do not have.
PARTS = {
    "evaluate": {"Target quality", "Clusters of each layer", "Which phones the units stand for"},
    "train": {"Prediction of masked units", "it1: masked accuracy", "Pre-training loss"},
    "finetune": {"Fine-tuning loss", "CER 38.0 % pretrained"},
    "decode": {"Speech recognition", "Recognised sentences", "CER 38.0 % pretrained"},
    "export": {"Largest absolute difference"},
    "prepare": {"Corpus"},
}
ALL = set().union(*PARTS.values())


@pytest.mark.parametrize("job", ["", *PARTS])
def test_a_job_that_was_not_run_is_left_out(workdir, job, capsys):
    for path in [*workdir.glob(f"*/{job}/result.json"), workdir / job / "result.json"]:
        if job:
            path.unlink(missing_ok=True)
    json.dumps(assemble(workdir, CONFIG, stages(workdir), []), allow_nan=False)
    shown = (workdir / "report.html").read_text() + capsys.readouterr().out
    assert {part for part in ALL if part in shown} == ALL - PARTS.get(job, set())


def test_without_alignments_and_labels_no_utterance_is_drawn(workdir):
    for job in ("evaluate", "label"):
        for name in CONFIG.iterations:
            (workdir / name / job / "result.json").unlink()
    assemble(workdir, CONFIG, stages(workdir), [])
    assert "One utterance" not in (workdir / "report.html").read_text()


@pytest.mark.parametrize(("iterations", "recognisers"), [(1, 0), (0, 1), (0, 0), (1, 1)])
def test_any_number_of_folders(workdir, iterations, recognisers):
    config = ReportConfig("", CONFIG.iterations[:iterations], CONFIG.recognisers[:recognisers])
    report = assemble(workdir, config, stages(workdir), [])
    assert len(report["iterations"]) == iterations
    assert len(report["wer"]) == recognisers


def test_nothing_was_run(tmp_path, capsys):
    report = assemble(tmp_path, CONFIG, {}, [])
    assert report["mfcc"]["pnmi"] is None
    assert report["export"]["max_abs_difference"] is None
    assert [i["masked_accuracy"] for i in report["iterations"]] == [None, None]
    assert capsys.readouterr().out.startswith("\nverdict: PNMI was not measured against MFCC\n")


def test_an_unfinished_job_is_as_one_not_run(workdir):
    (workdir / "it2/train/result.json").unlink()
    assert assemble(workdir, CONFIG, stages(workdir), [])["iterations"][1]["steps"] is None


def test_a_split_that_is_gone_is_named(workdir):
    labels = json.loads((workdir / "it2/evaluate/result.json").read_text())["labels"]
    change(workdir, "it2/evaluate", labels=[{**labels[0], "directory": str(workdir / "gone")}])
    with pytest.raises(InputError, match="gone"):
        assemble(workdir, CONFIG, stages(workdir), [])


def test_what_an_earlier_pipeline_has_left_is_not_this_one_s(workdir):
    """Of a network that was trained anew, scores of the one before say nothing."""
    found = {name: result for name, result in stages(workdir).items() if "evaluate" not in name}
    report = assemble(workdir, CONFIG, found, [])
    assert report["mfcc"]["pnmi"] is None and not report["iterations"][0]["pnmi_by_layer"]
