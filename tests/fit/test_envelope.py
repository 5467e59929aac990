import numpy as np
import pandas as pd
import pytest

from flops_fit.errors import FitError
from flops_fit.fit.envelope import fit_envelope
from flops_fit.laws import ParametricLaw

EPOCH = ParametricLaw(E=1.8172, A=477.8, B=2143.9, alpha=0.3473, beta=0.3672)
ASYMMETRIC = ParametricLaw(E=1.69, A=406.4, B=410.7, alpha=0.465, beta=0.155)


def curves(law, sizes, *, noise=0.0, seed=0):
    """Training curves of sizes optimal for 1e18 to 1e20 FLOPs, from 1/40 to 10 times their optimal data."""
    rng = np.random.default_rng(seed)
    frames = []
    for i, C in enumerate(np.geomspace(1e18, 1e20, sizes)):
        N, D = law.optimum(C)
        D = D * np.geomspace(1 / 40, 10, 60)
        L = law.loss(N, D) * np.exp(noise * rng.standard_normal(60))
        frames.append(
            pd.DataFrame({"run_id": f"r{i}", "num_params": N, "num_tokens": D, "flops": 6 * N * D, "loss": L})
        )
    return pd.concat(frames, ignore_index=True)


@pytest.mark.parametrize("law", [EPOCH, ASYMMETRIC])
@pytest.mark.parametrize("sizes", [5, 10, 20])
def test_noiseless_curves_return_the_power_laws_of_the_surface(law, sizes):
    fit = fit_envelope(curves(law, sizes), final=True)
    N, D = law.optimum(1e22)
    assert fit.N_opt.law(1e22) == pytest.approx(N, rel=0.005)
    assert fit.D_opt.law(1e22) == pytest.approx(D, rel=0.005)
    assert len(fit.points) == sizes - 2
    for point in fit.points:
        assert 6 * point.num_params * point.num_tokens == pytest.approx(point.compute, rel=1e-3)
        assert point.loss == pytest.approx(law.loss(point.num_params, point.num_tokens), rel=1e-3)


def test_noise_along_the_curves_is_averaged():
    # The error of ln N at 100 times the data; with the raw curves it is 0.27.
    fits = [fit_envelope(curves(EPOCH, 10, noise=0.003, seed=seed), final=True) for seed in range(20)]
    errors = np.log([fit.N_opt.law(1e22) / EPOCH.optimum(1e22)[0] for fit in fits])
    assert np.sqrt(np.mean(errors**2)) < 0.17


def test_row_order_does_not_matter():
    table = curves(EPOCH, 8, noise=0.001)
    assert fit_envelope(table.sample(frac=1, random_state=1), final=True) == fit_envelope(table, final=True)


def test_losses_that_are_not_final_make_it_descriptive():
    assert fit_envelope(curves(EPOCH, 6), final=False).descriptive
    assert not fit_envelope(curves(EPOCH, 6), final=True).descriptive


def test_too_few_sizes_give_a_reason_and_no_law():
    fit = fit_envelope(curves(EPOCH, 4), final=True)
    assert fit.N_opt is fit.D_opt is None
    assert fit.reason == "4 sizes; the envelope takes at least 5"


@pytest.mark.parametrize("longest", [0.2, 0.1])
def test_a_lead_that_a_rival_gave_up_by_stopping_does_not_count(longest):
    table = curves(EPOCH, 8)
    whole = fit_envelope(table, final=True)
    # Up to a fifth of its length each curve is overtaken before it ends; up to a tenth it is not.
    kept = table[table.num_tokens <= longest * table.groupby("run_id").num_tokens.transform("max")]
    fit = fit_envelope(kept, final=True)
    assert len(fit.points) == (len(whole.points) if longest == 0.2 else 0)
    for point, full in zip(fit.points, whole.points, strict=False):
        assert point.compute == pytest.approx(full.compute, rel=0.01)


def test_rows_that_say_nothing_are_passed_over_and_missing_columns_named():
    table = curves(EPOCH, 6)
    broken = pd.concat([table, table.head(3).assign(loss=np.nan), table.head(1).assign(flops=0.0)])
    assert fit_envelope(broken, final=True) == fit_envelope(table, final=True)
    with pytest.raises(FitError, match="lack flops"):
        fit_envelope(table.drop(columns="flops"), final=True)
