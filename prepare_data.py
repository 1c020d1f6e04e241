"""Make the data folders that train.py reads.

    python prepare_data.py demo --out demo
    python prepare_data.py digits --out data/digits

`digits` fetches the real ones: see prepare_data.py digits --help. `demo` needs
no network: it builds three small domains out of what scikit-learn and
matplotlib carry, the 1,797 handwritten 8x8 digits, two photographs and fonts.

    mnistm   handwritten digits in photo patches, |b - x|   4480 train   800 val
    usps     other handwritten digits, plain, greyscale      697 train   300 val
    svhn     rendered street numbers, blurred, noisy        2000 train   500 val

Expect about 15 seconds on one core and 35 MB on disk. The same seed gives the
same bytes. No handwritten sample stands in two splits or in two domains, and
the patches of val come from another region of the photographs than those of
train. It is a stand-in to try the commands on; its accuracies say nothing about
the real MNIST-M, USPS and SVHN.
"""

import argparse
import shlex
import time
from functools import partial
from pathlib import Path

from data_tools.archives import NEEDED, mnist, pooled, prepare
from data_tools.archives import __doc__ as digits_doc
from data_tools.demo import MAKERS, VERSION, build_domain, standing
from data_tools.sample import sampled
from utils import SEED, Parser, UserError, bounded, run_script, user_path


def run_demo(args: argparse.Namespace) -> dict:
    """Make the demo domains that are not there yet."""
    out: Path = args.out
    settings = {"version": VERSION, "seed": args.seed, "scale": args.scale}
    try:
        out.mkdir(parents=True, exist_ok=True)
        domains = {domain: standing(out / domain, settings) for domain in MAKERS}
        for domain, counts in domains.items():
            start = time.perf_counter()
            how = "is there already"
            if counts is None:
                counts = domains[domain] = build_domain(out, domain, settings)
                how = f"made in {time.perf_counter() - start:.1f} s"
            print(f"{domain}: {counts['train']} train and {counts['val']} val images, {how}", flush=True)
    except OSError as error:
        raise UserError(f"cannot write the demo into {out} ({error.strerror or error}); name another --out.") from error
    total = sum(sum(counts.values()) for counts in domains.values() if counts)
    command = f"python train.py --data_root {shlex.quote(str(out))} --train_mode dann --target_file usps"
    print(f"{total} images under {out}, in {', '.join(domains)}. Next: {command}")
    return {"out": str(out), "seed": args.seed, "scale": args.scale, "domains": domains}


def run_digits(args: argparse.Namespace) -> dict:
    """Make the real domains that are not there yet."""
    if args.sample and args.seed is not None:
        raise UserError("--sample has a split of its own; leave out --seed.")
    domains = list(args.only or NEEDED)
    source_of = sampled if args.sample else partial(pooled, seed=args.seed or 0)
    sources = {domain: mnist() if domain == "mnist" else source_of(domain) for domain in domains}
    made = {}
    for domain, counts, doubt in prepare(args.out, args.raw, sources):
        made[domain] = counts
        print(f"{domain}: " + ", ".join(f"{count} {split}" for split, count in counts.items()), flush=True)
        if doubt:
            print(f"warning: {doubt}", flush=True)
    for domain in [domain for domain in domains if domain not in made]:
        print(f"{domain}: is there already")
    return {"out": str(args.out), "domains": made}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="prepare_data.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="three small domains, made offline", description=__doc__)
    demo.add_argument("--out", type=user_path, required=True, help="folder that gets mnistm/, usps/ and svhn/")
    demo.add_argument("--seed", type=SEED, default=0, help="the same seed gives the same bytes (default: 0)")
    part = bounded(float, 0, 1, exclusive=True)
    demo.add_argument("--scale", type=part, default=1.0, help="part of the images of every class to make (default: 1)")
    demo.set_defaults(run=run_demo)

    digits = commands.add_parser("digits", help="the real digits, from their public archives", description=digits_doc)
    digits.add_argument("--out", type=user_path, required=True, help="folder that gets a folder of each domain")
    digits.add_argument("--raw", type=user_path, metavar="DIR", help="use the archives in this folder, download none")
    digits.add_argument(
        "--only",
        nargs="+",
        choices=tuple(NEEDED),
        metavar="DOMAIN",
        help=f"make these: {', '.join(NEEDED)} (default: all)",
    )
    digits.add_argument("--sample", action="store_true", help="make the rows and the split behind the README's tables")
    digits.add_argument("--seed", type=SEED, help="of the split and of the patches (default: 0)")
    digits.set_defaults(run=run_digits)
    return parser


def main(argv: list[str] | None = None) -> dict:
    args = build_parser().parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    run_script(main)
