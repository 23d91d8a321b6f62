"""`make bench`: ratios in one run on one machine (DESIGN.md section 8); `python -m bench search`,
`... retention`, `... export`: see there."""

import platform as machine
import subprocess
import sys

from bench import exporting, platform, retention, search


def main() -> None:
    """Every measurement, on a clean database; the server's figures first, then what is measured in this process."""
    if sys.argv[1:2] != ["search"]:  # which reads its own
        numbers = sys.argv[2:] if sys.argv[1:2] in (["retention"], ["export"]) else sys.argv[1:]
        if len(numbers) > 1 or not all(text.isascii() and text.isdecimal() and int(text) for text in numbers):
            sys.stderr.write("python -m bench [SECONDS], bench export|retention [RECORDS], bench search --help\n")
            sys.exit(2)
    if sys.argv[1:2] == ["search"]:
        search.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["retention"]:
        retention.main(sys.argv[2:])
        return
    if sys.argv[1:2] == ["export"]:
        exporting.main(sys.argv[2:])
        return
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    print(f"Python {machine.python_version()}, {machine.machine()}, {seconds:g} s a measurement\n")
    with platform.servers():
        # Django is set up now, so what uses its models can be imported.
        from bench import deciding, guarding, introspecting, limiting, proofs, proving, revoking, sealing, verifying
        from tests.world import build

        world = build()
        with platform.web():
            verifying.measure(world, seconds)
            limiting.measure(world, seconds)
            introspecting.measure(world, seconds)
            proving.measure(world, seconds)
            guarding.measure(world)
            revoking.measure(world, seconds)
        sealing.measure(world)
        proofs.measure()
        deciding.measure(world)
        limiting.alone(world)
        introspecting.alone(world)
        proving.alone(world)
        retention.measure(world)
    # It fills an empty database, and so has one of its own.
    subprocess.run([sys.executable, "-m", "bench", "export", str(exporting.FEW)], check=True)


if __name__ == "__main__":
    main()
