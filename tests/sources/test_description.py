"""What is read beside weights: architecture, classes and preprocessing, in all the forms in which they are written."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.parity.oracle import framework
from transfer_jax.core.errors import UserError
from transfer_jax.core.spec import Component, build
from transfer_jax.data import StreamSpec, preprocessing
from transfer_jax.data.preprocessing import normalise, prepare_image
from transfer_jax.models import BACKBONES, build_backbone
from transfer_jax.pretrained import catalog
from transfer_jax.pretrained.architectures import TIMM, TRANSFORMERS, from_timm, from_transformers
from transfer_jax.pretrained.catalog import IMAGENET_MEAN, IMAGENET_STD, imagenet_classes, known_sources
from transfer_jax.pretrained.description import Description, Preprocessing, describe

NESTED = {"architecture": "resnet50", "num_classes": 1000, "num_features": 2048, "global_pool": "avg",
          "pretrained_cfg": {"tag": "a1_in1k", "input_size": [3, 224, 224], "interpolation": "bicubic",
                             "crop_pct": 0.95, "crop_mode": "center", "mean": [0.485, 0.456, 0.406],
                             "std": [0.229, 0.224, 0.225], "num_classes": 1000, "first_conv": "conv1",
                             "classifier": "fc"}}
FLAT = {"architecture": "vit_base_patch16_384", "num_classes": 3, "input_size": [3, 384, 384], "crop_pct": 1.0,
        "interpolation": "bilinear", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "first_conv": "patch_embed.proj",
        "classifier": "head", "label_names": ["cat", "cow", "dog"]}
BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 384, "num_hidden_layers": 6,
        "num_attention_heads": 12, "intermediate_size": 1536, "vocab_size": 30522, "type_vocab_size": 2,
        "max_position_embeddings": 512, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "pad_token_id": 0}
VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 768, "patch_size": 16,
       "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072, "layer_norm_eps": 1e-12,
       "image_size": 384, "id2label": {"1": "dog", "0": "cat", "10": "cow", **{str(i): f"x{i}" for i in range(2, 10)}}}
PROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": {"height": 224, "width": 224},
             "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "image_processor_type": "ViTImageProcessor"}


@pytest.fixture
def folder(tmp_path):
    def write(config=None, **files):
        for name, content in {"config": config, **files}.items():
            if content is not None:
                path = tmp_path / f"{name.replace('__', '/')}.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path

    return write


def through_stream(images: Preprocessing, picture: np.ndarray) -> np.ndarray:
    """float32 [H, W, C]: what a stream with this preprocessing makes of uint8 [h, w, 3]."""
    spec = build(StreamSpec, {"data": {"kind": "folder"}, "batch_size": 1,
                              **Description(preprocessing=images).stream_arguments()})
    told = json.loads(json.dumps(preprocessing(spec)))  # as it travels with a model
    return normalise(prepare_image(picture, told).astype(np.float32) / 255, told)


def test_timm_nested(folder):
    found = describe(folder(NESTED))
    assert (found.architecture, found.backbone, found.layout) == ("resnet50", {"kind": "resnet50"}, "timm")
    assert found.preprocessing == Preprocessing((224, 224), 235, "crop", "bicubic")
    assert found.head == {"kind": "linear", "tap": "pooled", "classes": 1000}
    assert found.classes == imagenet_classes() and found.classes[0] == "tench" and len(set(found.classes)) == 1000
    assert found.image_shape == (224, 224, 3)


def test_timm_flat_and_with_classes_of_its_own(folder):
    found = describe(folder(FLAT))
    assert found.backbone == {"kind": "vit_base", "patch": 16} and found.classes == ("cat", "cow", "dog")
    assert found.preprocessing == Preprocessing((384, 384), 384, "crop", "bilinear", (0.5,) * 3, (0.5,) * 3)
    gaps = describe(folder({**FLAT, "label_names": {"0": "cat", "2": "dog"}}))
    assert gaps.classes == ("cat", "class 1", "dog")
    assert describe(folder({**FLAT, "label_names": None})).classes is None


def test_timm_absent_settings_have_its_defaults(folder):
    found = describe(folder({"architecture": "resnet18"}))
    assert found.preprocessing == Preprocessing((224, 224), 256, "crop", "bicubic", IMAGENET_MEAN, IMAGENET_STD)
    assert found.head is None and found.classes is None


@pytest.mark.parametrize(("name", "component"), {
    "vit_small_patch32_384.augreg_in21k": {"kind": "vit_small", "patch": 32},
    "deit_tiny_distilled_patch16_224": {"kind": "deit_tiny_distilled", "patch": 16},
    "vit_base_patch14_reg4_dinov2.lvd142m": {"kind": "dinov2_base", "registers": 4,
                                                "class_position": False},
    "vit_small_patch14_dinov2": {"kind": "dinov2_small"},
    "swin_base_patch4_window12_384.ms_in22k": {"kind": "swin_base", "window": 12},
    "swin_tiny_patch4_window7_224": {"kind": "swin_tiny"},
    "vit_base_patch32_clip_quickgelu_224.openai": {"kind": "clip_image_b32"},
    "vit_large_patch14_clip_224.openai": {"kind": "clip_image_l14", "activation": "gelu"},
    "vit_base_patch16_siglip_224": None, "resnet50d": None, "vit_base_patch16_rope_224": None}.items())
def test_names_of_timm(name, component):
    assert from_timm(name, {}) == component


def test_changed_architectures_of_timm_are_strangers():
    assert from_timm("resnet50", {"num_classes": 3, "in_chans": 1, "global_pool": "avg"}) == {"kind": "resnet50"}
    assert from_timm("resnet50", {"output_stride": 8}) is None
    assert from_timm("vit_base_patch16_224", {}, "avg") is None and from_timm("resnet50", {}, "max") is None


def test_transformers_image_classifier(folder):
    found = describe(folder(VIT, preprocessor_config=PROCESSOR))
    assert found.backbone == {"kind": "vit_base", "patch": 16, "epsilon": 1e-12} and found.layout == "transformers"
    assert found.classes[:3] == ("cat", "dog", "x2") and found.classes[10] == "cow"  # 10 comes behind 9
    assert found.preprocessing == Preprocessing((224, 224), None, "stretch", "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert found.native_size == (384, 384)
    plain = describe(folder({**VIT, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}))
    assert plain.classes is None


@pytest.mark.parametrize(("told", "expected"), [
    ({"size": 224, "image_processor_type": "ViTImageProcessor"}, ((224, 224), None, "stretch")),
    ({"size": 256, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "DeiTFeatureExtractor"},
     ((224, 224), (256, 256), "crop")),
    ({"size": 224, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"},
     ((224, 224), 224, "crop")),
    ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
     ((224, 224), 256, "crop")),
    ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, ((224, 224), 256, "crop")),
    ({"size": 384, "crop_pct": 0.875, "feature_extractor_type": "ConvNextFeatureExtractor"},
     ((384, 384), None, "stretch")),
    ({"size": {"height": 200, "width": 100}}, ((200, 100), None, "stretch")),
    ({"size": {"shortest_edge": 64}}, ((64, 64), None, "crop"))])
def test_forms_of_sizes(folder, told, expected):
    images = {"image_mean": [0.4, 0.4, 0.4], "image_std": [0.2, 0.2, 0.2], "resample": 3, **told}
    found = describe(folder(VIT, preprocessor_config=images)).preprocessing
    assert (found.image_size, found.resize, found.fit) == expected and found.interpolation == "bicubic"


def test_ranges_of_pixels(folder):
    plain = {"image_mean": [0.4], "image_std": [0.2], "size": 8}

    def found(**more):
        images = describe(folder(VIT, preprocessor_config={**plain, **more})).preprocessing
        return images.mean[0], images.std[0]

    assert found() == pytest.approx((0.4, 0.2))
    assert found(do_normalize=False) == pytest.approx((0, 1))
    assert found(rescale_factor=1 / 127.5) == pytest.approx((0.2, 0.1))
    assert found(do_rescale=False, image_mean=[127.5], image_std=[51]) == pytest.approx((0.5, 0.2))
    assert found(image_processor_type="EfficientNetImageProcessor") == pytest.approx((0.4, 0.04))


def test_text_encoders(folder):
    pool = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "word_embedding_dimension": 384}
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    plain = describe(folder(BERT)).backbone
    assert plain == {"kind": "bert", "vocabulary": 30522, "width": 384, "layers": 6, "heads": 12, "mlp_width": 1536,
                     "types": 2, "positions": 512, "epsilon": 1e-12, "activation": "gelu", "padding_token": 0}
    found = describe(folder(BERT, **{"1_Pooling__config": pool, "modules": modules}))
    assert found.backbone == {**plain, "pool": "mean", "normalize": True} and found.preprocessing is None
    (folder() / "modules.json").write_text(json.dumps(modules[:2]))
    assert describe(folder()).backbone == {**plain, "pool": "mean", "normalize": False}
    with pytest.raises(UserError, match="pools in a way that is not known here .mean, max."):
        describe(folder(BERT, **{"1_Pooling__config": {**pool, "pooling_mode_max_tokens": True}}))


def test_families_of_text_models():
    roberta = from_transformers({"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1}, {})
    assert (roberta["positions"], roberta["position_offset"], roberta["padding_token"]) == (512, 2, 1)
    classifier = {"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"], "n_layers": 3}
    found = from_transformers(classifier, {})
    assert (found["kind"], found["layers"], found["pool"]) == ("distilbert", 3, "hidden")
    gpt2 = from_transformers({"model_type": "gpt2", "n_embd": 64, "n_inner": None, "activation_function": "relu"}, {})
    assert gpt2["activation"] == "relu" and "mlp_width" not in gpt2
    assert from_transformers({"model_type": "bert", "hidden_act": "swish"}, {}) is None
    assert from_transformers({"model_type": "mamba"}, {}) is None


def test_clip_has_two_towers():
    both = {"model_type": "clip", "vision_config": {"patch_size": 16}, "text_config": {"eos_token_id": 2}}
    assert from_transformers(both, {}) == {"kind": "clip_image_b16"}
    text = {"model_type": "clip_text_model", "architectures": ["CLIPTextModelWithProjection"], "eos_token_id": 2}
    assert from_transformers(text, {}) == {"kind": "clip_text_b32"}
    alone = {"model_type": "clip_vision_model", "architectures": ["CLIPVisionModel"], "hidden_act": "gelu"}
    assert from_transformers(alone, {}) == {"kind": "clip_image_b32", "activation": "gelu", "projection": None}


def test_sizes_that_no_argument_of_ours_expresses_are_strangers():
    assert from_transformers({**VIT, "hidden_size": 32, "num_attention_heads": 2}, {}) is None
    assert from_transformers({"model_type": "resnet", "downsample_in_bottleneck": True}, {}) is None
    assert from_transformers({"model_type": "resnet", "layer_type": "basic", "depths": [3, 4, 6, 3],
                              "hidden_sizes": [64, 128, 256, 512]}, {}) == {"kind": "resnet34"}
    assert from_transformers({"model_type": "bit", "global_padding": "SAME"}, {}) is None
    assert from_transformers({"model_type": "swin", "embed_dim": 48}, {}) is None


def test_torchvision(tmp_path):
    (tmp_path / "inception_v3_google-0cc3c7bd.pth").write_bytes(b"")
    found = describe(tmp_path / "inception_v3_google-0cc3c7bd.pth")
    assert found.backbone == {"kind": "inception_v3"} and found.layout == "torchvision"
    assert found.preprocessing == Preprocessing((299, 299), 342, "crop", "bilinear", (0.5,) * 3, (0.5,) * 3)
    (tmp_path / "vit_b_32-d86f8d99.pth").write_bytes(b"")
    other = describe(tmp_path / "vit_b_32-d86f8d99.pth")
    assert other.backbone == {"kind": "vit_base", "patch": 32} and other.preprocessing.mean == IMAGENET_MEAN
    assert other.classes == imagenet_classes()


def test_strangers_are_silent(tmp_path):
    (tmp_path / "net.pth").write_bytes(b"")
    assert describe(tmp_path / "net.pth") == Description(str(tmp_path / "net.pth"))
    assert describe(tmp_path, "name") == Description("name")
    (tmp_path / "config.json").write_text('{"model_type": "new"}')
    assert describe(tmp_path).backbone is None and describe(tmp_path).architecture == "new"


def test_our_own_description(folder):
    task = {"task": {"head": "classify"}, "class_names": ["a", "b"], "evaluated_here": False,
            "image_shape": [20, 30, 1],
            "preprocessing": {"image_size": [20, 30], "resize": [24, 40], "fit": "crop", "interpolation": "lanczos",
                              "channels": 1, "mean": 0.3, "std": [0.2]}}
    model = {"backbones": {"backbone": {"kind": "resnet18"}}, "heads": {"classify": {"kind": "mlp", "classes": 2}}}
    found = describe(folder(model={"model": model, "tasks": {"t": task}}))
    assert found.backbone == {"kind": "resnet18"} and found.head == {"kind": "mlp", "classes": 2}
    assert found.classes == ("a", "b") and found.layout == "transfer_jax"
    assert found.preprocessing == Preprocessing((20, 30), (24, 40), "crop", "lanczos", (0.3,), (0.2,), 1)
    with pytest.raises(UserError, match="model.json is not as such files are .KeyError: 'model'."):
        describe(folder(model={}))


@pytest.mark.parametrize("text", ["", "{", "[1]", '"x"', "[" * 100_000, b"\xff\xfe", "{} {}"])
def test_unreadable_files_are_one_sentence(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="config.json (cannot be read|holds no mapping)") as caught:
        describe(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("config", [NESTED, FLAT, VIT, BERT, "processor"],
                         ids=["nested", "flat", "vit", "bert", "images"])
def test_wrong_values_are_one_sentence_or_harmless(folder, config):
    """Every value of a description replaced by values of all types: a description or one UserError."""
    base = PROCESSOR if config == "processor" else config
    faults = 0
    for keys in [(key,) for key in base] + [("pretrained_cfg", key) for key in base.get("pretrained_cfg", ())]:
        for value in (None, True, -1, 0, 1e400, "text", [], [1], {}, {"x": 1}, [[1]], 10**30):
            changed = json.loads(json.dumps(base))
            place = changed[keys[0]] if len(keys) > 1 else changed
            place[keys[-1]] = value
            files = {"config": VIT, "preprocessor_config": changed} if base is PROCESSOR else {"config": changed}
            try:
                found = describe(folder(**files))
                if found.preprocessing:
                    build(StreamSpec, {"data": {"kind": "folder"}, "batch_size": 1,
                                       **{**found.stream_arguments(), "channels": None}})
            except UserError as error:
                faults += 1
                assert "\n" not in str(error) and "json" in str(error), (keys, value, str(error))
    assert faults > 10


def test_another_size_of_the_input_cuts_off_the_same_share():
    images = Preprocessing((224, 224), 256)
    assert images.at((112, 112)).resize == 128 and images.at((224, 224)) == images
    assert Preprocessing((224, 224), (256, 256)).at((112, 224)).resize == (128, 256)
    assert Preprocessing((224, 224), None, "stretch").at((64, 32)) == Preprocessing((64, 32), None, "stretch")
    assert Description(preprocessing=images).stream_arguments((112, 112))["resize"] == 128
    assert Description().stream_arguments((8, 8)) == {"image_size": (8, 8)} and Description().stream_arguments() == {}


def test_every_component_can_be_built():
    """Of the families that are here: their fields are called as the descriptions call them."""
    names = ["vit_base_patch32_224", "deit_small_distilled_patch16_224", "vit_base_patch14_reg4_dinov2",
             "swin_base_patch4_window12_384", "vit_base_patch32_clip_224", *TIMM]
    found = [from_timm(name, {}) for name in names]
    found += [from_transformers({"model_type": name}, {}) for name in TRANSFORMERS]
    found += [entry.component for entry in catalog.TORCHVISION]
    assert all(found)
    built = [build_backbone(Component(**component)) for component in found if component["kind"] in BACKBONES]
    assert len(built) > 40 and all(backbone.tap_names[-1] == "pooled" for backbone in built)


def test_known_sources():
    assert known_sources("resnet50")[:2] == ["torchvision/resnet50", "timm/resnet50.a1_in1k"]
    assert known_sources("vit_base")[0] == "torchvision/vit_b_16" and known_sources("lenet") == []
    assert "hf://sentence-transformers/all-MiniLM-L6-v2" in known_sources("minilm")
    assert not [name for name in BACKBONES if name.startswith(("resnet", "vgg", "bit_", "swin", "bert"))
                and not known_sources(name)]


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (300, 421, 3), dtype=np.uint8)


@pytest.mark.parametrize("change", [{}, {"crop_mode": "squash"}, {"crop_mode": "squash", "crop_pct": 1.0},
                                    {"input_size": [3, 96, 64]}, {"interpolation": "bilinear", "crop_pct": 0.875}])
def test_images_reach_the_network_as_in_timm(folder, picture, change):
    data = framework("timm").data
    config = {**NESTED["pretrained_cfg"], **change}
    transform = data.create_transform(**{key: tuple(value) if isinstance(value, list) else value
                                         for key, value in config.items() if key in (
                                             "input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")})
    theirs = transform(Image.fromarray(picture)).numpy().transpose(1, 2, 0)
    ours = through_stream(describe(folder({**NESTED, "pretrained_cfg": config})).preprocessing, picture)
    np.testing.assert_allclose(ours, theirs, atol=2e-6)


@pytest.mark.parametrize("change", [
    {}, {"size": {"height": 64, "width": 48}}, {"image_processor_type": "DeiTImageProcessor", "do_center_crop": True,
                                                "size": {"height": 256, "width": 256}},
    {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 224}, "resample": 3},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 224}, "crop_pct": 0.875},
    {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
    {"image_processor_type": "EfficientNetImageProcessor", "include_top": True},
    {"rescale_factor": 1 / 127.5}, {"do_rescale": False}, {"do_normalize": False}])
def test_images_reach_the_network_as_in_transformers(folder, picture, change):
    """Up to one step of the pixels' rounding; a crop may lie beside theirs by one pixel where it cannot be central."""
    config = {**PROCESSOR, **change}
    transformers = framework("transformers")
    kind = getattr(transformers, config["image_processor_type"] + "Pil", None)
    if kind is None:
        pytest.skip("this version of transformers has no processors that use Pillow")
    theirs = kind(**{key: value for key, value in config.items() if key != "image_processor_type"})(
        Image.fromarray(picture), return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    images = describe(folder(VIT, preprocessor_config=config)).preprocessing
    ours = through_stream(images, picture)
    assert ours.shape == theirs.shape
    errors = [np.abs(np.roll(ours, shift, (0, 1)) - theirs)[1:-1, 1:-1].max() * min(images.std) * 255
              for shift in [(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)]]
    assert min(errors) <= 1.01 * (1 if min(images.std) > 0.01 else 1 / 255 / min(images.std))
