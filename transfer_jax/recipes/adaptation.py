"""Recipes for a target without labels: they learn the source's labels and bring the target's features to them.

`Setting.stream` is the labelled source, `Setting.target` the unlabelled target (its `evaluate` may score a labelled
part of it: nothing is chosen by that). All but `shot`, `tent`, `t3a` and `adabn` see both domains at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from transfer_jax.core.errors import UserError
from transfer_jax.models.taps import find_tap
from transfer_jax.recipes.few_parameters import modules_with
from transfer_jax.recipes.setting import HEAD, Config, Setting, plan, stage

CRITIC = "critic"  # of domains, on features
PRODUCT_CRITIC = "product_critic"  # of domains, on features times predictions
ADVERSARY = "adversary"  # of the classifier
SECOND = "second"  # classifier
RISING = {"kind": "ganin"}  # weights of terms that look at predictions: these mean little at first


def source_only(setting: Setting) -> Config:
    """The source alone: what every other recipe is compared with."""
    return plan(setting, {"source_only": _jointly(setting)})


def dann(setting: Setting, *, weight: float = 1.0, hidden: int = 256, gamma: float = 10.0) -> Config:
    """A classifier of domains behind a gradient reversal (Ganin et al. 2016)."""
    return _adversarial(setting, "dann", {"kind": "domain_adversarial", "weight": weight, "gamma": gamma}, hidden)


def bsp(setting: Setting, *, weight: float = 1.0, hidden: int = 256, strength: float = 1e-4) -> Config:
    """`dann` with the largest singular values of both feature matrices held down (Chen et al. 2019)."""
    return _adversarial(setting, "bsp", {"kind": "domain_adversarial", "weight": weight}, hidden,
                        {"spectrum": _pair(setting, "batch_spectral_penalization", strength=strength)})


def cdan(setting: Setting, *, weight: float = 1.0, hidden: int = 256, entropy: bool = False,
         size: int = 1024) -> Config:
    """A classifier of domains that sees features times predictions; with `entropy` CDAN+E (Long et al. 2018).

    size: of the random map that stands for the product where this has more than 4096 entries.
    """
    product = _width(setting) * _classes(setting, "cdan")
    term = _pair(setting, "conditional_adversarial", weight=weight, entropy_weights=entropy, task=setting.name,
                 head=PRODUCT_CRITIC, size=size)
    return plan(setting, {"cdan_e" if entropy else "cdan": _jointly(setting, {"adversary": term})}, heads={
        PRODUCT_CRITIC: {"kind": "mlp", "hidden": (hidden, hidden), "outputs": 1,
                         "inputs": product if product <= 4096 else size}})


def mdd(setting: Setting, *, weight: float = 1.0, hidden: int = 256, margin: float = 4.0) -> Config:
    """An adversary that agrees with the classifier on the source and contradicts it on the target (Zhang et al.
    2019)."""
    head = {"kind": "mlp", "hidden": (hidden,), "outputs": _classes(setting, "mdd")}
    term = _pair(setting, "margin_disparity", weight=weight, margin=margin, task=setting.name, head=ADVERSARY)
    return plan(setting, {"mdd": _jointly(setting, {"adversary": term})}, heads={ADVERSARY: head})


def mcd(setting: Setting, *, steps: int = 4) -> Config:
    """Two classifiers that disagree on the target as far as they can, and an encoder that makes them agree, `steps`
    times for each of their updates (Saito et al. 2018)."""
    return _discrepant(setting, "mcd", "classifier_discrepancy", steps)


def swd(setting: Setting, *, steps: int = 4, projections: int = 128) -> Config:
    """`mcd` with the sliced Wasserstein distance of the two classifiers' answers (Lee et al. 2019)."""
    return _discrepant(setting, "swd", "sliced_discrepancy", steps, projections=projections)


def _discrepant(setting: Setting, name: str, kind: str, steps: int, **options: Any) -> Config:
    _pair(setting, name)
    labels = {"kind": "task", "task": setting.name, "stream": setting.stream}
    both = {setting.name: labels, SECOND: {**labels, "task": SECOND}}
    differ = {"kind": kind, "task": setting.name, "head": SECOND, "stream": setting.target, **options}
    found = _jointly(setting, updates=(
        {"terms": both}, {"terms": {**both, "apart": {**differ, "weight": -1.0}}, "groups": ("head",)},
        {"terms": {"together": differ}, "groups": ("backbone",), "repeats": steps}))
    made = plan(setting, {name: found}, heads={SECOND: dict(setting.head)})
    return {**made, "tasks": {**made["tasks"], SECOND: {**setting.task, "head": SECOND}}}


def mdan(setting: Setting, *, sources: int = 2, weight: float = 1.0, hidden: int = 256, mu: float = 0.01,
         sharpness: float | None = 10.0) -> Config:
    """Several sources, merged into `Setting.stream`, each with a classifier that tells it from the target; the worst
    counts most (Zhao et al. 2018). sharpness: None: the worst alone."""
    term = _pair(setting, "multi_source_adversarial", weight=weight, count=sources, mu=mu, sharpness=sharpness,
                 task=setting.name, head=CRITIC)
    found = _jointly(setting)
    found["objective"] = {"terms": {setting.name: term}}
    return plan(setting, {"mdan": found},
                heads={CRITIC: {"kind": "mlp", "hidden": (hidden, hidden), "outputs": sources}})


def wdgrl(setting: Setting, *, weight: float = 1.0, hidden: int = 256, repeats: int = 5) -> Config:
    """The Wasserstein distance by a critic of slope one, updated `repeats` times for each step of the network (Shen et
    al. 2018)."""
    critic = {"critic": _pair(setting, "wasserstein_critic", head=CRITIC)}
    network = {**_source(setting), "distance": _pair(setting, "wasserstein_distance", head=CRITIC, weight=weight)}
    found = _jointly(setting, updates=({"terms": critic, "groups": (CRITIC,), "repeats": repeats},
                                       {"terms": network, "groups": ("backbone", "head")}), critic=True)
    return plan(setting, {"wdgrl": found}, heads=_critic(hidden))


def adda(setting: Setting, *, hidden: int = 256, source_share: float = 0.5, factor: float = 0.1) -> Config:
    """First the source, then the encoder alone learns to give target features that a critic takes for the source
    encoder's, at `factor` times the rate (Tzeng et al. 2017)."""
    critic = {"critic": {**_pair(setting, "domain_critic_to_start"), "head": CRITIC}}
    fool = {"confusion": {"kind": "confusion", "streams": {"target": setting.target}, "head": CRITIC, **_tap(setting)}}
    second = _jointly(setting, share=1 - source_share, critic=True, updates=(
        {"terms": critic, "groups": (CRITIC,)}, {"terms": fool, "groups": ("backbone",)}))
    second |= {"init": "source", "lr": factor * setting.lr, "partition": (
        (f"heads/{CRITIC}/.*", CRITIC), (HEAD, "frozen"), (".*", "backbone")), "groups": {CRITIC: {}, "backbone": {}}}
    return plan(setting, {"source": _jointly(setting, share=source_share), "adda": second}, heads=_critic(hidden))


def dan(setting: Setting, *, weight: float = 1.0, convention: str = "default") -> Config:
    """The means of the features in the space of Gaussian kernels brought together (Long et al. 2015)."""
    return _aligned(setting, "dan", "mmd", weight, convention=convention)


def jan(setting: Setting, *, weight: float = 1.0, taps: Sequence[str] = ()) -> Config:
    """The same of the joint distribution of features and predictions (Long et al. 2017). taps: the layers; empty: that
    of the head."""
    layers = tuple(taps) or (_tap(setting)["tap"],)
    term = _pair(setting, "joint_mmd", weight=weight, task=setting.name, taps=layers, weight_schedule=RISING)
    return plan(setting, {"jan": _jointly(setting, {"joint": term})})


def dsan(setting: Setting, *, weight: float = 1.0) -> Config:
    """Kernel means brought together class by class, by the predictions on the target (LMMD; Zhu et al. 2020)."""
    return _aligned(setting, "dsan", "local_mmd", weight, task=setting.name, weight_schedule=RISING)


def deep_coral(setting: Setting, *, weight: float = 10.0) -> Config:
    """Covariances of the features brought together (Sun & Saenko 2016)."""
    return _aligned(setting, "deep_coral", "deep_coral", weight)


def cmd(setting: Setting, *, weight: float = 1.0, orders: int = 5, span: float = 20.0) -> Config:
    """Central moments of the features brought together (Zellinger et al. 2017). span: of their values, for features
    without bounds a guess: the fifth moment of one beyond it outweighs all else."""
    return _aligned(setting, "cmd", "central_moments", weight, orders=orders, span=span)


def deep_jdot(setting: Setting, *, weight: float = 1.0) -> Config:
    """Features and labels carried to the target at the least cost (Damodaran et al. 2018)."""
    return _aligned(setting, "deep_jdot", "joint_transport", weight, task=setting.name)


def afn(setting: Setting, *, weight: float = 0.05, radius: float = 0.0) -> Config:
    """Features of both domains made longer step by step (Xu et al. 2019); with a `radius` their mean length is drawn to
    it (hard AFN)."""
    kind = {"kind": "hard_feature_norm", "radius": radius} if radius else {"kind": "feature_norm"}
    terms = {f"{role}_norm": {**kind, "stream": stream, "weight": weight, **_tap(setting)}
             for role, stream in _pair(setting, "")["streams"].items()}
    return plan(setting, {"hard_afn" if radius else "afn": _jointly(setting, terms)})


def minimum_entropy(setting: Setting, *, weight: float = 0.1) -> Config:
    """Sure predictions on the target (Grandvalet & Bengio 2005)."""
    return _predictions(setting, "minimum_entropy", "entropy", weight)


def information_maximization(setting: Setting, *, weight: float = 0.1) -> Config:
    """Sure predictions on the target, of all classes (Krause et al. 2010; Liang et al. 2020)."""
    return _predictions(setting, "information_maximization", "information_maximization", weight)


def mcc(setting: Setting, *, weight: float = 1.0, temperature: float = 2.5) -> Config:
    """Classes that are seldom confused on the target (Jin et al. 2020)."""
    return _predictions(setting, "mcc", "class_confusion", weight, temperature=temperature)


def bnm(setting: Setting, *, weight: float = 1.0) -> Config:
    """A large nuclear norm of the predictions on the target: sure and of many classes (Cui et al. 2020)."""
    return _predictions(setting, "bnm", "nuclear_norm", weight)


def vada(setting: Setting, *, weight: float = 1.0, hidden: int = 256, entropy: float = 0.01, source: float = 1.0,
         target: float = 0.01, radius: float = 1.0) -> Config:
    """`dann`, and predictions that are sure on the target and the same around every example of both domains (Shu et al.
    2018, without DIRT-T)."""
    reads = {"head": setting.name, "stream": setting.target}
    around = {"kind": "virtual_adversarial", "task": setting.name, "radius": radius}
    return _adversarial(setting, "vada", {"kind": "domain_adversarial", "weight": weight}, hidden, {
        "entropy": {"kind": "entropy", "weight": entropy, **reads},
        "around_source": {**around, "stream": setting.stream, "weight": source},
        "around_target": {**around, "stream": setting.target, "weight": target}})


def pseudo_label(setting: Setting, *, weight: float = 1.0, threshold: float = 0.9) -> Config:
    """The model's own sure predictions on the target as its labels (Lee 2013)."""
    return _predictions(setting, "pseudo_label", "pseudo_labels", weight, threshold=threshold)


def fixmatch(setting: Setting, *, weight: float = 1.0, threshold: float = 0.95, curriculum: bool = False,
             warm_up: bool = True) -> Config:
    """Sure predictions on the target as labels of its strongly augmented view (Sohn et al. 2020); with `curriculum` by
    a threshold for each class, FlexMatch (Zhang et al. 2021), which `warm_up` lets begin at 0. Needs
    `Setting.strong`."""
    kind = "flexmatch" if curriculum else "fixmatch"
    term = {"kind": kind, "head": setting.name, "weight": weight, "threshold": threshold}
    return _two_views(setting, kind, {**term, **({"warm_up": warm_up} if curriculum else {})})


def mean_teacher(setting: Setting, *, weight: float = 3.0, decay: float = 0.99) -> Config:
    """Predictions on the target held to those of the averaged model (Tarvainen & Valpola 2017). Needs
    `Setting.strong`."""
    term = {"kind": "teacher_consistency", "task": setting.name, "head": setting.name, "weight": weight,
            "weight_schedule": RISING}
    return _two_views(setting, "mean_teacher", term, ema={"decay": decay})


def self_ensemble(setting: Setting, *, weight: float = 3.0, decay: float = 0.99, threshold: float = 0.968) -> Config:
    """The same where the averaged model is sure, with balanced classes (French et al. 2018). Needs
    `Setting.strong`."""
    term = {"kind": "self_ensembling", "task": setting.name, "head": setting.name, "weight": weight,
            "threshold": threshold}
    return _two_views(setting, "self_ensemble", term, ema={"decay": decay})


def dsbn(setting: Setting, *, method: str = "dann", **arguments: Any) -> Config:
    """Another recipe with statistics of normalisation for each domain (Chang et al. 2019)."""
    found = _other(setting, method, "dsbn", arguments)
    return {**found, "stages": {name: {**kept, "batch_norm": "separate"} for name, kept in found["stages"].items()}}


def domain_shift(setting: Setting, *, method: str = "deep_coral", taps: Sequence[str] = (), spread: float = 0.0,
                 source_scale: float = 0.3, target_scale: float = 1.0, gap_rate: float = 3.0,
                 **arguments: Any) -> Config:
    """Another recipe in which each of `Setting.domains` has a learned shift and scale of the features.

    taps: where; empty: the head's. spread: standard deviation of the target's first shifts, the source's are zero.
    source_scale, target_scale: of the gradients that batches of each domain send to the network; gap_rate: learning
    rate of the gap beside that of the rest.
    """
    found = _other(setting, method, "domain_shift", arguments)
    places = tuple(f"backbone/{tap}" for tap in (taps or (_tap(setting)["tap"],)))
    gap = {"kind": "domain_shift", "targets": places, "domains": setting.domains,
           "spread": {setting.domains[-1]: spread}}
    return {**found, "stages": {name: {
        **kept, "peft": {"gap": gap}, "gradient_scale": {setting.stream: source_scale, setting.target: target_scale},
        "partition": (("peft/gap/.*", "gap"), *kept["partition"]),
        "groups": {**kept["groups"], "gap": {"lr_multiplier": gap_rate, "weight_decay": 0.0}}}
        for name, kept in found["stages"].items()}}


def adabn(setting: Setting, *, prior: float = 0.0) -> Config:
    """The source, then the target's statistics in every BatchNorm (Li et al. 2016); `prior`: as many examples that the
    source's statistics count for (Schneider et al. 2020)."""
    refit = {"kind": "norm_statistics", "stream": setting.target, "prior": prior}
    return plan(setting, {"source": _jointly(setting), "adabn": _as_it_stands(setting, "source", refit)})


def t3a(setting: Setting, *, supports: int = 100) -> Config:
    """The source, then a classifier of target features that the model is sure of (Iwasawa & Matsuo 2021)."""
    refit = {"kind": "prototypes", "stream": setting.target, "head": setting.name, "supports": supports}
    return plan(setting, {"source": _jointly(setting), "t3a": _as_it_stands(setting, "source", refit)})


def tent(setting: Setting, *, lr: float = 1e-3, epochs: float = 1.0) -> Config:
    """The source, then scales and shifts of BatchNorm on the entropy of each batch (Wang et al. 2021)."""
    term = {"kind": "entropy", "stream": setting.target, "head": setting.name}
    norms = f"{modules_with(setting, 'scale')}/(scale|bias)"
    second = {"init": "source", "epochs": epochs, "lr": lr, "objective": {"terms": {"entropy": term}},
              "partition": ((norms, "norms"), (".*", "frozen")), "groups": {"norms": {}},
              "evaluate": dict.fromkeys(setting.evaluate, setting.name), **setting.stage}
    return plan(setting, {"source": _jointly(setting), "tent": second})


def shot(setting: Setting, *, clusters: float = 0.3, source_share: float = 0.5, every: int = 100,
         label_smoothing: float = 0.1, factor: float = 1.0) -> Config:
    """The source, then, without it, sure predictions of all classes and labels of the nearest centroid, found anew
    `every` so many steps; the classifier stays (Liang et al. 2020)."""
    first = _jointly(setting, share=source_share)
    first["objective"]["terms"][setting.name]["label_smoothing"] = label_smoothing
    reads = {"stream": setting.target, "head": setting.name}
    terms = {"information": {"kind": "information_maximization", **reads},
             "clusters": {"kind": "cluster_cross_entropy", "weight": clusters, **_tap(setting), **reads}}
    second = stage(setting, 1 - source_share, **{"init": "source", "lr": factor * setting.lr, "measure_every": every,
                                                 "partition": ((HEAD, "frozen"), (".*", "backbone")),
                                                 "groups": {"backbone": {"lr_multiplier": setting.backbone_lr}}})
    return plan(setting, {"source": first, "shot": {**second, "objective": {"terms": terms}}})


def _source(setting: Setting) -> Config:
    return {setting.name: {"kind": "task", "task": setting.name, "stream": setting.stream}}


def _tap(setting: Setting) -> Config:
    """The features that a method aligns: those that the head reads."""
    return {"tap": setting.head.get("tap", "pooled")}


def _pair(setting: Setting, kind: str, **options: Any) -> Config:
    if not setting.target:
        raise UserError("a recipe for an unlabelled target needs it: give Setting its `target`, the name of a stream")
    return {"kind": kind, "streams": {"source": setting.stream, "target": setting.target}, **_tap(setting), **options}


def _jointly(setting: Setting, terms: Mapping[str, Any] | None = None, *, updates: Sequence[Config] = (),
             share: float = 1.0, critic: bool = False) -> Config:
    """A stage in which all moves, the backbone at its rate; with `critic` that head is a group of its own."""
    objective = {"updates": tuple(updates)} if updates else {"terms": {**_source(setting), **(terms or {})}}
    own = ((f"heads/{CRITIC}/.*", CRITIC),) if critic else ()
    groups = {"head": {}, "backbone": {"lr_multiplier": setting.backbone_lr}, **({CRITIC: {}} if critic else {})}
    return {**stage(setting, share, **{"init": setting.start, "partition": (*own, (HEAD, "head"), (".*", "backbone")),
                                       "groups": groups}), "objective": objective}


def _critic(hidden: int) -> Config:
    return {CRITIC: {"kind": "mlp", "hidden": (hidden, hidden), "outputs": 1}}


def _adversarial(setting: Setting, name: str, term: Config, hidden: int,
                 more: Mapping[str, Any] | None = None) -> Config:
    terms = {"adversary": {**_pair(setting, **term), "head": CRITIC}, **(more or {})}
    return plan(setting, {name: _jointly(setting, terms)}, heads=_critic(hidden))


def _aligned(setting: Setting, name: str, kind: str, weight: float, **options: Any) -> Config:
    return plan(setting, {name: _jointly(setting, {"alignment": _pair(setting, kind, weight=weight, **options)})})


def _predictions(setting: Setting, name: str, kind: str, weight: float, **options: Any) -> Config:
    """A term on the predictions for the target alone, its weight rising."""
    if not setting.target:
        _pair(setting, kind)
    term = {"kind": kind, "stream": setting.target, "head": setting.name, "weight": weight, "weight_schedule": RISING}
    return plan(setting, {name: _jointly(setting, {"target": {**term, **options}})})


def _two_views(setting: Setting, name: str, term: Config, **keys: Any) -> Config:
    _pair(setting, "")
    if not setting.strong:
        raise UserError(f"recipe {name} compares two views of the target: give Setting its `strong`, the name of a "
                        f"stream that follows the target with more augmentation")
    views = {"streams": {"weak": setting.target, "strong": setting.strong}}
    return plan(setting, {name: {**_jointly(setting, {"views": {**term, **views}}), **keys}})


def _other(setting: Setting, method: str, asked: str, arguments: Mapping[str, Any]) -> Config:
    if method not in JOINT:
        raise UserError(f"recipe {asked}: method = {method!r} does not fit; use one of {', '.join(JOINT)}")
    return JOINT[method](setting, **arguments)


def _as_it_stands(setting: Setting, init: str, refit: Config) -> Config:
    _pair(setting, "")
    return {"init": init, "refit": (refit,), "evaluate": dict.fromkeys(setting.evaluate, setting.name)}


def _width(setting: Setting) -> int:
    """The length of the features that the head reads."""
    taps = jax.eval_shape(lambda x: setting.module.init_with_output(jax.random.key(0), x)[0], setting.module.example)
    return find_tap(taps, _tap(setting)["tap"]).shape[-1]


def _classes(setting: Setting, name: str) -> int:
    if not setting.classes:
        raise UserError(f"recipe {name} needs the number of classes: give Setting its `classes`")
    return setting.classes


JOINT = {recipe.__name__: recipe for recipe in (source_only, dann, bsp, cdan, mdd, dan, jan, dsan, deep_coral, cmd,
                                                deep_jdot, afn, minimum_entropy, information_maximization, mcc, bnm)}
