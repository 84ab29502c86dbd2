"""d"""
import ml_collections
from cells import arguments, arm, digits, experiment, learn, scenes


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    args = arguments(arg, steps=300, scenes=20)
    streams = dict(
        source=digits(args, "plain"),
        source_test=digits(args, "plain", split="test"),
        target=scenes("plain", split=f"train[:{args.scenes}]"),
        target_test=scenes("plain", split="test"),
    )
    test = dict(target_test="scenes")
    stages = dict(
        pretrain=dict(init="fresh", steps=args.steps, lr=2e-3, schedule=dict(kind="cosine"),
                      objective=dict(terms=learn(digits="source")), evaluate=dict(source_test="digits")),
        scratch=arm("from scratch", learn(scenes="target"), test, args.steps, 2e-3),
        finetune=arm("classify, then segment", learn(scenes="target"), test, args.steps, 2e-3, init="pretrain"),
    )
    return experiment("task_adaptation", args, ("scenes", "digits"), streams, stages, ("target_test",))
