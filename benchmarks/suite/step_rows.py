"""C1, C2, C3 and C5: what a training step costs."""

from __future__ import annotations

from benchmarks.suite.gate import ALLOWED, differences
from benchmarks.suite.options import Options
from benchmarks.suite.ours import Ours, automatic
from benchmarks.suite.peer import Peer
from benchmarks.suite.plain import Plain
from benchmarks.suite.rounds import Run, Times, measure
from benchmarks.suite.row import Goal, Row
from benchmarks.suite.task import Task, deep_pair, image_pair, linear_pair

from understudy.training.precision import Precision

FLOAT = Precision("float32", False, "cpu")
OURS, PLAIN, PEER = "understudy", "plain loop", "torchdistill"


def overhead(options: Options) -> Row:
    """C1: microseconds of a step of two linear layers."""
    row = Row("C1", "overhead: one linear layer each, batch 64, float32", "us / step")
    task = linear_pair()
    if not _gate(row, task, FLOAT, options):
        return row
    ours = Ours(task, FLOAT)
    contenders: dict[str, Run] = {OURS: ours.run, PLAIN: Plain(task, FLOAT).run}
    if options.peer is None:
        contenders[PEER] = Peer(task).run
    times = measure(contenders, options.pick(250, 5), options.pick(8, 2))
    ours.close()
    row.take(times, 1e6, [(OURS, PLAIN), (OURS, PEER)])
    over = 1e6 * times.excess(OURS, PLAIN)
    row.values["understudy over plain"] = over
    row.goals.append(Goal("at most 200 us over the plain loop", over, 200, at_most=True))
    share = None
    if PEER in contenders:
        theirs = 1e6 * times.excess(PEER, PLAIN)
        row.values["torchdistill over plain"] = theirs
        share = over / theirs if theirs > 0 else None
    row.goals.append(Goal("at most a third of torchdistill's overhead", share, 1 / 3, at_most=True))
    row.bound = "the plain loop: overhead 0"
    row.notes.append("The plain loop writes no log and checks nothing.")
    return row


def float_step(options: Options) -> Row:
    """C2: ResNet32x4 to ResNet8x4 in float32."""
    row = Row("C2", "kd:resnet32x4 -> kd:resnet8x4, KD, float32", "ms / step")
    task = _images(options)
    if not _gate(row, task, FLOAT, options):
        return row
    # All contenders compute the same, so that there is little between them: more rounds than elsewhere.
    times = _race(task, FLOAT, options, options.pick(3, 1), options.pick(8, 2))
    _speed(row, times, task.batch, goal=0.97, peer=1.0)
    return row


def best_step(options: Options) -> Row:
    """C3: the same, each contender as fast as it can."""
    task = _images(options)
    precision = automatic(task)
    row = Row("C3", f"the same, each at its best (understudy: {precision})", "ms / step")
    if not _gate(row, task, precision, options):
        return row
    times = _race(task, precision, options, options.pick(3, 1), options.pick(5, 2))
    _speed(row, times, task.batch, goal=0.97, peer=3.0)
    row.notes.append("torchdistill has no mixed precision: its step is that of C2.")
    return row


def hint_step(options: Options) -> Row:
    """C5: a hint alone, for which neither model need run to its end."""
    row = Row("C5", "ResNet34 -> ResNet18, FitNet hint at stage 2 of 4, float32", "ms / step")
    task = deep_pair(batch=options.pick(16, 2), samples=options.pick(2048, 128))
    if not _gate(row, task, FLOAT, options):
        return row
    ours = Ours(task, FLOAT)
    plain = Plain(task, FLOAT, ours.projector())
    contenders: dict[str, Run] = {OURS: ours.run, PLAIN: plain.run}
    if options.peer is None:
        contenders[PEER] = Peer(task, ours.projector()).run
    times = measure(contenders, options.pick(3, 1), options.pick(6, 2))
    ours.close()
    row.take(times, 1e3, [(OURS, PLAIN), (OURS, PEER)])
    behind = {role: seconds / plain.seconds for role, seconds in plain.behind.items()}
    bound = 1 / (1 - sum(behind.values()))
    row.details["bound"] = {f"{role} behind the tap": share for role, share in behind.items()}
    row.bound = (
        f"{bound:.2f}x the plain loop: its step less what it runs behind the tap, the teacher ({behind['teacher']:.0%} "
        f"of its time) and the student's forward pass ({behind['student']:.0%})"
    )
    row.share = row.ratios[f"{OURS} / {PLAIN}"] / bound
    row.goals.append(
        Goal("at least 1.35 times torchdistill", row.ratios.get(f"{OURS} / {PEER}"), 1.35)
    )
    row.notes.append(
        "torchdistill and the plain loop run both models to the end; a user of either could cut them, of torchdistill "
        "with `sequential`. understudy finds where they may end by itself."
    )
    return row


def _race(task: Task, precision: Precision, options: Options, steps: int, rounds: int) -> Times:
    """Let understudy, the plain loop, torchdistill and the student alone take turns."""
    ours, floor = Ours(task, precision), Plain(_images(options, "labels"), precision)
    contenders: dict[str, Run] = {OURS: ours.run, PLAIN: Plain(task, precision).run}
    if options.peer is None:
        contenders[PEER] = Peer(task).run
    contenders["student alone"] = floor.run
    times = measure(contenders, steps, rounds)
    ours.close()
    return times


def _images(options: Options, objective: str = "kd") -> Task:
    pair = ("resnet8", "resnet14") if options.quick else ("resnet8x4", "resnet32x4")
    size = options.pick(64, 8)
    return image_pair(*pair, batch=size, samples=options.pick(2048, 128), objective=objective)


def _gate(row: Row, task: Task, precision: Precision, options: Options) -> bool:
    """Compare the losses and tell whether the row may be timed: understudy computes what the plain loop does."""
    row.gate = differences(task, precision, options.peer is None)
    if options.peer is not None:
        row.notes.append(f"Without torchdistill: {options.peer}.")
    allowed = ALLOWED[precision.dtype]
    for name, difference in row.gate.items():
        if difference > allowed and name != OURS:
            row.notes.append(f"{name}: different objective, its losses differ by {difference:.1e}.")
    if row.gate[OURS] > allowed:
        found = f"{row.gate[OURS]:.1e} (allowed {allowed:.0e})"
        row.skipped = f"understudy's losses differ from the plain loop's by {found}"
    return row.skipped is None


def _speed(row: Row, times: Times, batch: int, *, goal: float, peer: float) -> None:
    row.take(times, 1e3, [(OURS, PLAIN), (OURS, PEER)])
    ratio = row.ratios[f"{OURS} / {PLAIN}"]
    row.details["images_per_second"] = {name: batch / times.median(name) for name in times.seconds}
    row.bound, row.share = "the plain loop", ratio
    row.notes.append(
        "understudy has the process keep freed memory; as all contenders run in one, all gain by it, about 5 per cent."
    )
    row.goals.append(Goal(f"at least {goal:g} of the plain loop", ratio, goal))
    against = row.ratios.get(f"{OURS} / {PEER}")
    row.goals.append(Goal(f"at least {peer:g} times torchdistill", against, peer))
