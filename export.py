"""Write a trained network as one file that runs without this repository.

    python export.py --checkpoint runs/dann_usps_tuned_seed0 --out_path usps.pt2

Preprocessing is inside. In: RGB images uint8 [B, 3, size, size], those of
another size resized before: whole, as by Pillow's BILINEAR; for a backbone the
middle, as the last line says. Out: class probabilities
float32 [B, K]. The ending names the format: .pt2 for torch.export
(`torch.export.load(path).module()`; the class names lie in its extra file
classes.json), .onnx for ONNX, which needs `pip install onnx onnxscript
onnxruntime` (class names in its metadata, `classes`). What was written is
loaded again and compared with the network, to 1e-4 of a probability, before it
takes its name.
"""

import argparse
import io
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from runs import CHECKPOINT, build_network, load_checkpoint, resolve_checkpoint
from utils import Parser, UserError, atomic_path, run_script, user_path

TOLERANCE = 1e-4  # of a probability
EXAMPLE = 4  # images


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", **CHECKPOINT)
    parser.add_argument(
        "--out_path", type=user_path, required=True, metavar="FILE", help="file to write, .pt2 or .onnx"
    )
    return parser


def compare(found: Tensor, wanted: Tensor) -> float:
    """Largest difference of a probability; UserError when it is no rounding."""
    difference = (found - wanted).abs().max().item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"--out_path: the file would not predict what the checkpoint does (off by {difference:.2g}) and was not "
            "written; choose the other format."
        )
    return difference


def write_pt2(path: Path, predictor: nn.Module, images: Tensor, classes: list[str]) -> float:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(predictor, (images,), dynamic_shapes=({0: batch},), strict=False)
    content = io.BytesIO()  # as in save_checkpoint: a full disk is to be an OSError
    with warnings.catch_warnings():  # weights in channels_last: torch says twice that it keeps them whole
        warnings.filterwarnings("ignore", message="No complete tensor found")
        torch.export.save(program, content, extra_files={"classes.json": json.dumps(classes)})
    path.write_bytes(content.getbuffer())
    again = torch.export.load(path).module()
    return max(compare(again(images[:n]), predictor(images[:n])) for n in (1, EXAMPLE))


def write_onnx(path: Path, predictor: nn.Module, images: Tensor, classes: list[str]) -> float:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise UserError(
            f"--out_path: .onnx needs the package {error.name}; run pip install onnx onnxscript onnxruntime, or name "
            "a file that ends in .pt2."
        ) from error
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        predictor,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["images"],
        output_names=["probabilities"],
        verbose=False,
    )
    assert program is not None
    graph = program.model_proto
    graph.metadata_props.append(onnx.StringStringEntryProto(key="classes", value=json.dumps(classes)))
    path.write_bytes(graph.SerializeToString())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = {n: torch.from_numpy(session.run(None, {"images": images[:n].numpy()})[0]) for n in (1, EXAMPLE)}
    return max(compare(found[n], predictor(images[:n])) for n in found)


FORMATS = {".pt2": write_pt2, ".onnx": write_onnx}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Export; returns `out_path`, `classes` and the largest `difference` to the network's own probabilities."""
    args = build_parser().parse_args(argv)
    write = FORMATS.get(args.out_path.suffix.lower())
    if write is None or args.out_path.is_dir():
        raise UserError(f"--out_path {args.out_path} must be a file that ends in .pt2 or .onnx.")
    file = resolve_checkpoint(args.checkpoint)
    net, classes = build_network(file, load_checkpoint(file), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    size = net.arguments["size"]
    predictor = nn.Sequential(net, nn.Softmax(1)).eval().requires_grad_(False)  # uint8 [B, 3, H, W] -> [B, K]
    images = torch.randint(0, 256, (EXAMPLE, 3, size, size), dtype=torch.uint8, generator=generator)
    with torch.no_grad(), atomic_path(args.out_path) as part:
        difference = write(part, predictor, images, classes)
    if net.preprocessing:
        how = f"the middle {net.preprocessing.crop:.1%} of the shorter side, {net.preprocessing.interpolation}"
    else:
        how = "the whole image, bilinear"
    print(f"{args.out_path}: {len(classes)} classes, probabilities within {difference:.1g} of the checkpoint's")
    print(f"in: RGB uint8 [B, 3, {size}, {size}], {how}")
    return {"out_path": str(args.out_path), "classes": classes, "difference": difference}


if __name__ == "__main__":
    run_script(main)
