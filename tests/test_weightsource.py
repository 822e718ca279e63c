import pytest

from pipeline.weightsource import Location, Published, Sealed, weight_source


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (None, None),
        ("DEFAULT", Published("DEFAULT")),
        ("IMAGENET1K_V2", Published("IMAGENET1K_V2")),
        ("ResNet50_Weights.IMAGENET1K_V2", Published("ResNet50_Weights.IMAGENET1K_V2")),
        ("flowers@0a1b2c3d4e5f", Sealed("flowers", "0a1b2c3d4e5f")),
        ("flowers@production", Sealed("flowers", "production")),
        ("w.safetensors", Location("w.safetensors")),
        ("old.pth", Location("old.pth")),
        ("./weights/w", Location("./weights/w")),
        ("https://host/w.safetensors", Location("https://host/w.safetensors")),
        ("s3://bucket/a@b/w.safetensors", Location("s3://bucket/a@b/w.safetensors")),
        ("flowers@0a1b.safetensors", Location("flowers@0a1b.safetensors")),
    ],
)
def test_names_bundles_and_files_are_told_apart(text, meaning):
    assert weight_source(text) == meaning
