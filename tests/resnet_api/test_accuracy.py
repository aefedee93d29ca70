"""How well the ResNet18 web API tells real parts, with the trained weights."""

from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from backend.base.config import Settings
from backend.resnet_api.predictor import Predictor
from backend.service.images import ImageFile

# Image AUROC of anomalib 2.7's PatchCore with the same weights at 256² and a coreset of 1 %.
PEER = {"cookies": 0.9804, "pills": 0.9805}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PEER)
def test_predict_ranks_good_and_bad_parts_at_least_as_well_as_the_peer(
    name: str, shared_data: Path, tmp_path: Path
) -> None:
    weights = shared_data / "weights" / "resnet18_layers1-3.safetensors"
    settings = Settings(artifacts_dir=tmp_path, resnet_weights=str(weights), save_vis=False, device="cpu")
    predictor = Predictor(settings)

    def files(*parts: str) -> list[ImageFile]:
        return [ImageFile.named(p.name, p.read_bytes) for p in sorted(shared_data.joinpath(name, *parts).iterdir())]

    predictor.build(files("train", "good"))
    bad = [path.name for path in sorted((shared_data / name / "test").iterdir()) if path.name != "good"]
    labelled = [(file, 0) for file in files("test", "good")]
    labelled += [(file, 1) for kind in bad for file in files("test", kind)]
    found = [(predictor.predict(file), label) for file, label in labelled]
    predictor.close()
    auroc = roc_auc_score([label for _, label in found], [one.score for one, _ in found])
    rejected = sum(one.is_anomaly for one, label in found if not label)
    missed = sum(not one.is_anomaly for one, label in found if label)
    print(f"{name}: image AUROC {auroc:.4f}, {rejected} good rejected, {missed} bad missed of {len(found)}")
    assert auroc >= PEER[name]
