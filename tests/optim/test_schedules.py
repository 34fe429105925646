"""Learning rates of schedules: figures of PyTorch 2.13 over 60 epochs, saved state, texts."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from typing import Any

import pytest

import tracegrad as tg
from tracegrad import nn
from tracegrad.optim import SGD, Adam
from tracegrad.optim import lr_scheduler as lrs

EPOCHS = (0, 1, 4, 7, 10, 20, 31, 59)

# rule, schedule, then in EPOCHS: learning rates of two groups that start from 0.8 and 0.3, and the
# momentum (or the first beta) of the first, where it moves
GOLDEN: dict[str, Any] = {
    "StepLR": (
        SGD,
        lambda o: lrs.StepLR(o, 7, 0.7),
        [
            0.8,
            0.8,
            0.8,
            0.5599999999999999,
            0.5599999999999999,
            0.39199999999999996,
            0.19207999999999997,
            0.04611840799999998,
        ],
        [0.3, 0.3, 0.3, 0.21, 0.21, 0.147, 0.07202999999999998, 0.017294402999999993],
        None,
    ),
    "MultiStepLR": (
        SGD,
        lambda o: lrs.MultiStepLR(o, [3, 10, 10, 31], gamma=0.5),
        [0.8, 0.8, 0.4, 0.4, 0.1, 0.1, 0.05, 0.05],
        [0.3, 0.3, 0.15, 0.15, 0.0375, 0.0375, 0.01875, 0.01875],
        None,
    ),
    "ConstantLR": (
        SGD,
        lambda o: lrs.ConstantLR(o, 0.3, 6),
        [0.24, 0.24, 0.24, 0.8, 0.8, 0.8, 0.8, 0.8],
        [0.09, 0.09, 0.09, 0.3, 0.3, 0.3, 0.3, 0.3],
        None,
    ),
    "LinearLR": (
        SGD,
        lambda o: lrs.LinearLR(o, 0.25, 0.9, 12),
        [
            0.2,
            0.24333333333333337,
            0.3733333333333334,
            0.5033333333333334,
            0.6333333333333335,
            0.7200000000000002,
            0.7200000000000002,
            0.7200000000000002,
        ],
        [
            0.075,
            0.09125000000000001,
            0.14,
            0.18875000000000003,
            0.23750000000000007,
            0.2700000000000001,
            0.2700000000000001,
            0.2700000000000001,
        ],
        None,
    ),
    "ExponentialLR": (
        SGD,
        lambda o: lrs.ExponentialLR(o, 0.93),
        [
            0.8,
            0.7440000000000001,
            0.5984416080000001,
            0.48136069648605617,
            0.38718584574343473,
            0.1873910989300736,
            0.08434539805668742,
            0.011055641607739237,
        ],
        [
            0.3,
            0.279,
            0.22441560300000005,
            0.18051026118227106,
            0.14519469215378802,
            0.0702716620987776,
            0.031629524271257786,
            0.004145865602902217,
        ],
        None,
    ),
    "PolynomialLR": (
        SGD,
        lambda o: lrs.PolynomialLR(o, 40, 2.5),
        [
            0.8,
            0.7509335814504503,
            0.6147467771367331,
            0.49456668534182546,
            0.38971143170299766,
            0.14142135623730956,
            0.019210836785522916,
            0.0,
        ],
        [
            0.3,
            0.2816000930439188,
            0.2305300414262749,
            0.1854625070031845,
            0.14614178688862411,
            0.053033008588991085,
            0.007204063794571096,
            0.0,
        ],
        None,
    ),
    "LambdaLR": (
        SGD,
        lambda o: lrs.LambdaLR(o, [lambda t: 0.95**t, lambda t: 1 / (1 + t)]),
        [
            0.8,
            0.76,
            0.651605,
            0.5586698368749998,
            0.478989551390703,
            0.2867887379268335,
            0.16312546059663233,
            0.038795620199538486,
        ],
        [0.3, 0.15, 0.06, 0.0375, 0.02727272727272727, 0.014285714285714284, 0.009375, 0.005],
        None,
    ),
    "MultiplicativeLR": (
        SGD,
        lambda o: lrs.MultiplicativeLR(o, lambda t: 1 - 1 / (t + 2)),
        [
            0.8,
            0.5333333333333334,
            0.2666666666666667,
            0.1777777777777778,
            0.13333333333333336,
            0.07272727272727274,
            0.048484848484848506,
            0.026229508196721315,
        ],
        [
            0.3,
            0.2,
            0.10000000000000002,
            0.06666666666666668,
            0.05000000000000001,
            0.027272727272727275,
            0.01818181818181818,
            0.009836065573770491,
        ],
        None,
    ),
    "CosineAnnealingLR": (
        SGD,
        lambda o: lrs.CosineAnnealingLR(o, 11, eta_min=0.05),
        [
            0.8,
            0.7848098651054366,
            0.5807806298757076,
            0.26921937012429265,
            0.06519013489456349,
            0.7404700748116947,
            0.10952992518830718,
            0.2692193701242933,
        ],
        [
            0.3,
            0.2949366217018122,
            0.22692687662523586,
            0.12307312337476427,
            0.05506337829818784,
            0.2801566916038984,
            0.06984330839610242,
            0.12307312337476445,
        ],
        None,
    ),
    "CosineAnnealingWarmRestarts": (
        SGD,
        lambda o: lrs.CosineAnnealingWarmRestarts(o, 5, 2, eta_min=0.01),
        [
            0.8,
            0.7245617127781043,
            0.0854382872218958,
            0.7245617127781043,
            0.405,
            0.6843071785686863,
            0.0854382872218958,
            0.28293828722189585,
        ],
        [
            0.3,
            0.27230746418436735,
            0.03769253581563264,
            0.27230746418436735,
            0.155,
            0.25753048327204936,
            0.03769253581563264,
            0.11019253581563263,
        ],
        None,
    ),
    "CyclicLR": (
        SGD,
        lambda o: lrs.CyclicLR(o, 0.1, 0.9, step_size_up=7, step_size_down=4),
        [
            0.1,
            0.2142857142857142,
            0.5571428571428573,
            0.8999999999999998,
            0.2999999999999998,
            0.49999999999999967,
            0.49999999999999967,
            0.5571428571428568,
        ],
        [
            0.1,
            0.2142857142857142,
            0.5571428571428573,
            0.8999999999999998,
            0.2999999999999998,
            0.49999999999999967,
            0.49999999999999967,
            0.5571428571428568,
        ],
        [
            0.9,
            0.8857142857142858,
            0.8428571428571429,
            0.8,
            0.875,
            0.8500000000000001,
            0.8500000000000001,
            0.842857142857143,
        ],
    ),
    "CyclicLR halved": (
        Adam,
        lambda o: lrs.CyclicLR(o, [0.1, 0.2], [0.9, 1.1], 6, mode="triangular2"),
        [
            0.1,
            0.23333333333333323,
            0.6333333333333332,
            0.7666666666666665,
            0.3666666666666665,
            0.3666666666666665,
            0.2666666666666666,
            0.10833333333333331,
        ],
        [
            0.2,
            0.34999999999999987,
            0.8,
            0.95,
            0.4999999999999998,
            0.4999999999999998,
            0.38749999999999996,
            0.20937499999999998,
        ],
        [
            0.9,
            0.8833333333333334,
            0.8333333333333334,
            0.8166666666666668,
            0.8666666666666667,
            0.8666666666666667,
            0.8791666666666667,
            0.8989583333333334,
        ],
    ),
    "CyclicLR falling": (
        SGD,
        lambda o: lrs.CyclicLR(o, 0.1, 0.9, 6, mode="exp_range", gamma=0.97, cycle_momentum=False),
        [
            0.1,
            0.22933333333333322,
            0.5721561653333332,
            0.6386552298540864,
            0.2966464338386473,
            0.3900236495609315,
            0.3593179043245751,
            0.12210400948750186,
        ],
        [
            0.1,
            0.22933333333333322,
            0.5721561653333332,
            0.6386552298540864,
            0.2966464338386473,
            0.3900236495609315,
            0.3593179043245751,
            0.12210400948750186,
        ],
        None,
    ),
    "CyclicLR own": (
        SGD,
        lambda o: lrs.CyclicLR(
            o, 0.1, 0.9, 6, scale_fn=lambda t: 1 / (1 + t), scale_mode="iterations"
        ),
        [
            0.1,
            0.16666666666666663,
            0.20666666666666667,
            0.18333333333333332,
            0.12424242424242422,
            0.12539682539682537,
            0.12083333333333333,
            0.10222222222222221,
        ],
        [
            0.1,
            0.16666666666666663,
            0.20666666666666667,
            0.18333333333333332,
            0.12424242424242422,
            0.12539682539682537,
            0.12083333333333333,
            0.10222222222222221,
        ],
        [
            0.9,
            0.8916666666666667,
            0.8866666666666667,
            0.8895833333333334,
            0.896969696969697,
            0.8968253968253969,
            0.8973958333333334,
            0.8997222222222222,
        ],
    ),
    "OneCycleLR": (
        SGD,
        lambda o: lrs.OneCycleLR(o, 1.5, total_steps=60),
        [
            0.06000000000000005,
            0.07225936822759071,
            0.2479135796011256,
            0.5829626471481002,
            0.9770373528518996,
            1.481196009352631,
            1.1250015,
            6e-06,
        ],
        [
            0.06000000000000005,
            0.07225936822759071,
            0.2479135796011256,
            0.5829626471481002,
            0.9770373528518996,
            1.481196009352631,
            1.1250015,
            6e-06,
        ],
        [
            0.95,
            0.9491486549841951,
            0.9369504458610329,
            0.9136831495036041,
            0.8863168504963959,
            0.8512536043909088,
            0.875,
            0.95,
        ],
    ),
    "OneCycleLR three": (
        Adam,
        lambda o: lrs.OneCycleLR(
            o, [1.5, 0.7], epochs=7, steps_per_epoch=9, three_phase=True, anneal_strategy="linear"
        ),
        [
            0.06,
            0.14044692737430167,
            0.3817877094972067,
            0.6231284916201119,
            0.8644692737430169,
            1.3310614525139663,
            0.44614525139664774,
            0.006875541984732822,
        ],
        [
            0.027999999999999997,
            0.06554189944134078,
            0.17816759776536312,
            0.2907932960893854,
            0.4034189944134078,
            0.6211620111731843,
            0.20820111731843566,
            0.0032085862595419845,
        ],
        [
            0.95,
            0.944413407821229,
            0.9276536312849162,
            0.9108938547486033,
            0.8941340782122904,
            0.861731843575419,
            0.9231843575418994,
            0.95,
        ],
    ),
    "ReduceLROnPlateau": (
        SGD,
        lambda o: lrs.ReduceLROnPlateau(o, factor=0.4, patience=3, cooldown=2, min_lr=[0.01, 0.02]),
        [0.8, 0.8, 0.8, 0.8, 0.8, 0.32000000000000006, 0.12800000000000003, 0.01],
        [0.3, 0.3, 0.3, 0.3, 0.3, 0.12, 0.048, 0.02],
        None,
    ),
    "ReduceLROnPlateau max": (
        SGD,
        lambda o: lrs.ReduceLROnPlateau(o, "max", 0.5, 2, 0.1, "abs"),
        [0.8, 0.8, 0.4, 0.2, 0.1, 0.0125, 0.00078125, 1.52587890625e-06],
        [0.3, 0.3, 0.15, 0.075, 0.0375, 0.0046875, 0.00029296875, 5.7220458984375e-07],
        None,
    ),
    "SequentialLR": (
        SGD,
        lambda o: lrs.SequentialLR(
            o,
            [
                lrs.LinearLR(o, 0.1, total_iters=5),
                lrs.CosineAnnealingLR(o, 20),
                lrs.StepLR(o, 4, 0.5),
            ],
            [5, 30],
        ),
        [
            0.08000000000000002,
            0.22400000000000003,
            0.656,
            0.7804226065180615,
            0.6828427124746191,
            0.11715728752538103,
            0.8,
            0.00625,
        ],
        [
            0.03,
            0.08399999999999999,
            0.24599999999999997,
            0.29265847744427304,
            0.2560660171779821,
            0.04393398282201787,
            0.3,
            0.00234375,
        ],
        None,
    ),
    "SequentialLR restarts": (
        SGD,
        lambda o: lrs.SequentialLR(
            o,
            [
                lrs.ConstantLR(o, 0.1, 4),
                lrs.CosineAnnealingWarmRestarts(o, 6),
                lrs.PolynomialLR(o, 10),
            ],
            [4, 40],
        ),
        [0.08000000000000002, 0.08000000000000002, 0.8, 0.4, 0.8, 0.2000000000000001, 0.4, 0.0],
        [0.03, 0.03, 0.3, 0.15, 0.3, 0.07500000000000002, 0.15, 0.0],
        None,
    ),
    "SequentialLR nested": (
        SGD,
        lambda o: lrs.SequentialLR(
            o,
            [
                lrs.ChainedScheduler([lrs.ConstantLR(o, 0.1, 4), lrs.ExponentialLR(o, 0.9)]),
                lrs.MultiStepLR(o, [3]),
            ],
            [8],
        ),
        [
            0.07200000000000002,
            0.06480000000000002,
            0.4723920000000002,
            0.3443737680000002,
            0.8,
            0.08000000000000002,
            0.08000000000000002,
            0.08000000000000002,
        ],
        [0.027, 0.0243, 0.17714700000000003, 0.12914016300000003, 0.3, 0.03, 0.03, 0.03],
        None,
    ),
    "ChainedScheduler": (
        SGD,
        lambda o: lrs.ChainedScheduler(
            [lrs.ConstantLR(o, 0.1, 20), lrs.ExponentialLR(o, 0.9), lrs.CosineAnnealingLR(o, 15)]
        ),
        [
            0.08000000000000002,
            0.07121331362641703,
            0.04380466363328189,
            0.021131701597707317,
            0.006973568802000008,
            1.3121999999999991,
            1.6291321958615887,
            0.20112743158785143,
        ],
        [
            0.03,
            0.026704992609906376,
            0.016426748862480703,
            0.007924388099140239,
            0.002615088300750002,
            0.4920749999999995,
            0.6109245734480957,
            0.0754227868454443,
        ],
        None,
    ),
}


def groups_of(rule):
    settings = {"momentum": 0.5} if rule is SGD else {}
    groups = [
        {"params": [nn.Parameter(tg.ones(1))]},
        {"params": [nn.Parameter(tg.ones(1))], "lr": 0.3},
    ]
    return rule(groups, lr=0.8, **settings)


def go_on(schedule, epoch):
    """One epoch; the metric is for `ReduceLROnPlateau`."""
    schedule.optimizer.step()
    if isinstance(schedule, lrs.ReduceLROnPlateau):
        schedule.step(tg.tensor(math.sin(0.37 * epoch) + 2 / (epoch + 1), dtype=tg.float64))
    else:
        schedule.step()


def written(optimizer):
    """The learning rates and momenta in the groups."""
    groups = optimizer.param_groups
    return [g["lr"] for g in groups], [g.get("momentum", g.get("betas")) for g in groups]


@pytest.mark.parametrize("case", GOLDEN)
def test_sixty_epochs_are_those_of_pytorch(case):
    rule, make, first, second, momentum = GOLDEN[case]
    optimizer = groups_of(rule)
    schedule = make(optimizer)
    rates, momenta = [], []
    for epoch in range(60):
        found = written(optimizer)
        assert schedule.get_last_lr() == found[0]
        if epoch in EPOCHS:
            rates.append(found[0])
            momenta.append(found[1][0] if rule is SGD else found[1][0][0])
        go_on(schedule, epoch)
    # exactly: they are Python numbers, and the same operations; libm's cos may differ by an ulp
    assert [r[0] for r in rates] == pytest.approx(first, rel=1e-14, abs=0)
    assert [r[1] for r in rates] == pytest.approx(second, rel=1e-14, abs=0)
    if momentum is not None:
        assert momenta == pytest.approx(momentum, rel=1e-14, abs=0)


@pytest.mark.parametrize("case", GOLDEN)
def test_a_schedule_goes_on_from_saved_state(case):
    rule, make, *_ = GOLDEN[case]
    one, two = groups_of(rule), groups_of(rule)
    first = make(one)
    for epoch in range(23):
        go_on(first, epoch)
    saved = pickle.loads(pickle.dumps(first.state_dict()))
    assert "optimizer" not in saved
    second = make(two)
    before = copy.deepcopy(saved)
    second.load_state_dict(saved)
    assert saved == before
    two.load_state_dict(one.state_dict())
    for epoch in range(23, 40):
        go_on(first, epoch)
        go_on(second, epoch)
        assert written(two) == written(one)
        assert second.get_last_lr() == first.get_last_lr()


def test_state_keeps_attributes_of_callables_but_no_functions():
    class Decay:
        def __init__(self, base):
            self.base = base

        def __call__(self, epoch):
            return self.base**epoch

    def cyclic(base):
        return lrs.CyclicLR(groups_of(SGD), 0.1, 0.9, 4, scale_fn=Decay(base))

    for kind in (lrs.LambdaLR, lrs.MultiplicativeLR):
        saved = kind(groups_of(SGD), [Decay(0.5), lambda epoch: 1.0]).state_dict()
        assert saved["lr_lambdas"] == [{"base": 0.5}, None]
        other = kind(groups_of(SGD), [Decay(0.25), lambda epoch: 1.0])
        other.load_state_dict(saved)
        assert other.lr_lambdas[0].base == 0.5
    saved, other = cyclic(0.5).state_dict(), cyclic(0.25)
    assert saved["_scale_fn_custom"] == {"base": 0.5}
    other.load_state_dict(saved)
    assert other.scale_fn(2) == 0.25


def test_an_epoch_that_is_given_warns_and_takes_the_closed_form():
    schedule = lrs.ExponentialLR(groups_of(SGD), 0.5)
    schedule.optimizer.step()
    with pytest.warns(UserWarning) as caught:
        schedule.step(3)
    assert str(caught[0].message).startswith("The epoch parameter in `scheduler.step()` was not")
    assert schedule.get_last_lr() == [0.8 * 0.125, 0.3 * 0.125]
    closed = [
        lrs.StepLR(groups_of(SGD), 2, 0.5), lrs.MultiStepLR(groups_of(SGD), [1, 3, 3], 0.5),
        lrs.LinearLR(groups_of(SGD), 0.5, 1.0, 4), lrs.PolynomialLR(groups_of(SGD), 5, 2.0),
        lrs.ConstantLR(groups_of(SGD), 0.25, 4), lrs.CosineAnnealingLR(groups_of(SGD), 6),
    ]  # fmt: skip
    factors = [0.5, 0.125, 0.875, (1 - 3 / 5) ** 2, 0.25, 0.5]
    for schedule, factor in zip(closed, factors, strict=True):
        schedule.optimizer.step()
        with pytest.warns(UserWarning, match="epoch parameter"):
            schedule.step(3)
        assert schedule.get_last_lr() == pytest.approx([0.8 * factor, 0.3 * factor], rel=1e-14)


def test_warm_restarts_go_to_any_epoch():
    schedule = lrs.CosineAnnealingWarmRestarts(groups_of(SGD), 4, 2)
    for epoch, share in ((2, 1 / 2), (5.0, 1 / 8), (13.5, 1.5 / 16), (0, 0.0)):
        schedule.step(epoch)
        height = (1 + math.cos(math.pi * share)) / 2
        assert schedule.get_last_lr() == pytest.approx([0.8 * height, 0.3 * height], rel=1e-14)
        assert schedule.last_epoch == math.floor(epoch)


def test_a_tensor_as_learning_rate_stays_the_same_object():
    rate = tg.tensor(0.5)
    optimizer = SGD([nn.Parameter(tg.ones(1))], lr=rate)
    schedule = lrs.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] is rate and rate.item() == 0.25
    kept = schedule.get_last_lr()[0]
    assert kept is not rate and kept.item() == 0.25


def test_resuming_needs_the_first_rates():
    with pytest.raises(KeyError) as raised:
        lrs.StepLR(groups_of(SGD), 2, last_epoch=4)
    assert raised.value.args[0].startswith(
        "param 'initial_lr' is not specified in param_groups[0] when resuming scheduler with "
        "last_epoch >= 0.\nThis typically happens when:\n1. "
    )
    optimizer = groups_of(SGD)
    schedule = lrs.ExponentialLR(optimizer, 0.5)
    for epoch in range(3):
        go_on(schedule, epoch)
    again = lrs.ExponentialLR(optimizer, 0.5, last_epoch=2)
    assert again.last_epoch == 3 and again.get_last_lr() == [0.1, 0.3 / 8]


# ---- refusals -----------------------------------------------------------------------------------

PLAIN = groups_of(SGD)
NO_MOMENTUM = tg.optim.RMSprop([nn.Parameter(tg.ones(1))])
del NO_MOMENTUM.defaults["momentum"]
OTHER = lrs.StepLR(NO_MOMENTUM, 2)  # writes "initial_lr", which the text shows


def one_step_too_many():
    schedule = lrs.OneCycleLR(groups_of(SGD), 1.0, total_steps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            schedule.step()


def a_group_without_bound():
    optimizer = groups_of(SGD)
    schedule = lrs.ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.0, 0.0])
    optimizer.add_param_group({"params": [nn.Parameter(tg.ones(1))]})
    schedule.step(1.0)
    schedule.step(1.0)


@pytest.mark.parametrize(("act", "kind", "text"), [
    (lambda: lrs.MultiplicativeLR(PLAIN, [abs] * 3), ValueError,
     "Expected 2 lr_lambdas, but got 3"),
    (lambda: lrs.MultiplicativeLR(PLAIN, 0.5), TypeError,
     "lr_lambda should be a function, but got float"),
    (lambda: lrs.ConstantLR(PLAIN, 1.5), ValueError,
     "Constant multiplicative factor expected to be between 0 and 1."),
    (lambda: lrs.LinearLR(PLAIN, 0.0), ValueError,
     "Starting multiplicative factor expected to be greater than 0 and less or equal to 1."),
    (lambda: lrs.LinearLR(PLAIN, 0.5, 1.5), ValueError,
     "Ending multiplicative factor expected to be between 0 and 1."),
    (lambda: lrs.CosineAnnealingWarmRestarts(PLAIN, 0), ValueError,
     "Expected positive integer T_0, but got 0"),
    (lambda: lrs.CosineAnnealingWarmRestarts(PLAIN, 2, 0), ValueError,
     "Expected integer T_mult >= 1, but got 0"),
    (lambda: lrs.CosineAnnealingWarmRestarts(PLAIN, 2, 1, "x"), ValueError,
     "Expected float or int eta_min, but got x of type <class 'str'>"),
    (lambda: lrs.CosineAnnealingWarmRestarts(PLAIN, 2).step(-1), ValueError,
     "Expected non-negative epoch, but got -1"),
    (lambda: lrs.CyclicLR(PLAIN, 0.1, [0.2]), ValueError,
     "max_lr must have the same length as optimizer.param_groups. max_lr has 1 values, "
     "param_groups has 2."),
    (lambda: lrs.CyclicLR(PLAIN, 0.1, 0.2, mode="x"), ValueError,
     "mode is invalid and scale_fn is None"),
    (lambda: lrs.CyclicLR(NO_MOMENTUM, 0.1, 0.2), ValueError,
     "optimizer must support momentum or beta1 with `cycle_momentum` option enabled"),
    (lambda: lrs.CyclicLR(3, 0.1, 0.2), TypeError, "int is not an Optimizer"),
    (lambda: lrs.OneCycleLR(PLAIN, 1.0), ValueError,
     "You must define either total_steps OR (epochs AND steps_per_epoch)"),
    (lambda: lrs.OneCycleLR(PLAIN, 1.0, 0), ValueError,
     "Expected positive integer total_steps, but got 0"),
    (lambda: lrs.OneCycleLR(PLAIN, 1.0, epochs=-1, steps_per_epoch=2), ValueError,
     "Expected positive integer epochs, but got -1"),
    (lambda: lrs.OneCycleLR(PLAIN, 1.0, epochs=1, steps_per_epoch=2.0), ValueError,
     "Expected positive integer steps_per_epoch, but got 2.0"),
    (lambda: lrs.OneCycleLR(PLAIN, 1.0, 5, pct_start=1), ValueError,
     "Expected float between 0 and 1 pct_start, but got 1"),
    (lambda: lrs.OneCycleLR(PLAIN, 1.0, 5, anneal_strategy="x"), ValueError,
     "anneal_strategy must be one of 'cos' or 'linear', instead got x"),
    (one_step_too_many, ValueError,
     "Tried to step 3 times. The specified number of total steps is 2"),
    (lambda: lrs.ReduceLROnPlateau(PLAIN, factor=1.0), ValueError, "Factor should be < 1.0."),
    (lambda: lrs.ReduceLROnPlateau(PLAIN, "x"), ValueError, "mode x is unknown!"),
    (lambda: lrs.ReduceLROnPlateau(PLAIN, threshold_mode="x"), ValueError,
     "threshold mode x is unknown!"),
    (lambda: lrs.ReduceLROnPlateau(PLAIN, min_lr=[0.1]), ValueError, "expected 2 min_lrs, got 1"),
    (lambda: lrs.ReduceLROnPlateau([]), TypeError, "list is not an Optimizer"),
    (a_group_without_bound, RuntimeError,
     "The number of param groups in the `optimizer` (3) differs from when `ReduceLROnPlateau` was "
     "initialized (2), usually due to a new param group being added to the optimizer. Please "
     "modify the `min_lrs` field to match the length of the `optimizer` param groups."),
    (lambda: lrs.SequentialLR(PLAIN, [], []), ValueError,
     "SequentialLR expects at least one scheduler, but got no scheduler."),
    (lambda: lrs.SequentialLR(PLAIN, [lrs.StepLR(PLAIN, 2)], [3]), ValueError,
     "Sequential Schedulers expects number of schedulers provided to be one more than the number "
     "of milestone points, but got number of schedulers 1 and the number of milestones to be "
     "equal to 1"),
    (lambda: lrs.ChainedScheduler([]), ValueError,
     "ChainedScheduler expects at least one scheduler to be chained, but got no scheduler."),
    (lambda: lrs.ChainedScheduler([abs], PLAIN), TypeError,
     "ChainedScheduler at index 0 should have `optimizer` as its attribute."),
    (lambda: lrs.ChainedScheduler([lrs.ReduceLROnPlateau(PLAIN)]), ValueError,
     "ChainedScheduler does not support `ReduceLROnPlateau` scheduler as it requires additional "
     "kwargs to be specified when calling `step`, but got one at index 0 in the given schedulers "
     "sequence."),
    (lambda: lrs.ChainedScheduler([OTHER], PLAIN), ValueError,
     "ChainedScheduler expects all schedulers to belong to the same optimizer, but got scheduler "
     f"StepLR at index 0 has {NO_MOMENTUM}, which is different from SGD."),
])  # fmt: skip
def test_refused(act, kind, text):
    with pytest.raises(kind) as raised:
        act()
    assert str(raised.value) == text


def test_a_refused_schedule_leaves_the_optimizer_as_it_was():
    optimizer = groups_of(SGD)
    before = copy.deepcopy(optimizer.state_dict())
    for act in (
        lambda: lrs.CyclicLR(optimizer, 0.1, 0.2, max_momentum=[0.1]),
        lambda: lrs.OneCycleLR(optimizer, 1.0, 5, base_momentum=[0.1]),
        lambda: lrs.OneCycleLR(optimizer, [1.0], 5),
        lambda: lrs.SequentialLR(optimizer, [], []),
    ):
        with pytest.raises(ValueError):
            act()
        assert optimizer.state_dict() == before
