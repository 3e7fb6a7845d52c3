"""Two iterations from MFCC and two recognisers: what a lab's first pipeline looks like."""

from ml_collections import ConfigDict

from configs import demo, small


def get_config(part: str = "pipeline") -> ConfigDict:
    """The whole, for `pipeline`."""
    del part
    one = small.stages()
    train, dev = "prepare:train", "prepare:dev-mini"
    it1 = dict(
        label=one["label"],
        train=_reading(one["train"], labels=("it1/label:train",)),
        evaluate=_scoring(one["evaluate"], "it1"),
    )
    it1["evaluate"]["untrained"] = True
    it2 = dict(
        label=dict(
            inputs=dict(audio=(train, dev), checkpoint="it1/train"),
            feature="layer",
            layer=3,
            num_clusters=100,
            seed=0,
            fit_max_frames=60_000,
            kmeans=dict(n_init=5),
        ),
        train=dict(
            demo.pretraining(500, (1.0,), (0,), 1e-3),
            inputs=dict(audio=train, labels=("it2/label:train",), init_from="it1/train"),
        ),
        evaluate=_scoring(one["evaluate"], "it2"),
        export=dict(inputs=dict(checkpoint="it2/train", audio=dev)),
    )
    stages = dict(prepare=one["prepare"], it1=it1, it2=it2)
    for name in ("pretrained", "scratch"):
        tuned = dict(checkpoint=f"{name}/finetune", audio=dev)
        stages[name] = dict(
            finetune=_reading(one["finetune"], init_from="it2/train"),
            decode=dict(inputs=tuned),
        )
    del stages["scratch"]["finetune"]["inputs"]["init_from"]
    stages["scratch"]["finetune"]["init_from"] = ""
    stages["pretrained"]["export"] = dict(inputs=tuned | dict(checkpoint="pretrained/finetune"))
    report = dict(iterations=("it1", "it2"), recognisers=("pretrained", "scratch"))
    return ConfigDict(dict(workdir="runs/two_iterations", stages=stages, report=report))


def _reading(values: dict, **inputs) -> dict:
    return values | dict(inputs=values["inputs"] | inputs)


def _scoring(values: dict, group: str) -> dict:
    labels = (f"{group}/label:dev-mini",)
    return _reading(values, checkpoint=f"{group}/train", labels=labels)
