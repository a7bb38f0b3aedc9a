from dataclasses import dataclass

import pytest

from labelwright.errors import ConfigError
from labelwright.methods import cap, cvs, lps
from labelwright.methods.baselines import la
from labelwright.pipeline.settings import parse_assignments
from labelwright.train.settings import TrainSettings, apply_overrides


@dataclass(frozen=True)
class Named:
    name: str = "a"
    pair: tuple[int, str] = (1, "x")
    limit: int | None = 3


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("epochs", "7", 7),
        ("epochs", "1e2", 100),
        ("epochs", "3.0", 3),
        ("epochs", 5.0, 5),
        ("lr", "1e-3", 0.001),
        ("lr", 1, 1.0),
        ("nesterov", "true", True),
        ("nesterov", "False", False),
        ("nesterov", "1", True),
        ("nesterov", False, False),
        ("optimizer", "adamw", "adamw"),
        ("step_at_frac", "0.5,0.75", (0.5, 0.75)),
        ("step_at_frac", "(0.5, 0.75, 0.9)", (0.5, 0.75, 0.9)),
        ("step_at_frac", [0.5], (0.5,)),
        ("kappa_clamp", "0.05,0.2", (0.05, 0.2)),
        ("kappa_shrink", "none", None),
        ("kappa_shrink", None, None),
        ("kappa_shrink", "0.5", 0.5),
        ("sam_radius_late", "null", None),
    ],
)
def test_apply_overrides__converts(key: str, text: object, value: object) -> None:
    found = getattr(apply_overrides(cvs.Config(), {key: text}), key)
    assert found == value
    assert type(found) is type(value)


def test_apply_overrides__converts_names_pairs_and_optional_integers() -> None:
    found = apply_overrides(Named(), {"name": "b", "pair": "2,y", "limit": "1e1"})
    assert found == Named("b", (2, "y"), 10)
    assert apply_overrides(found, {"limit": "None"}).limit is None


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        ("epochs", "3.5", "epochs=3.5 is not a valid int\n  fix: give epochs a int"),
        ("epochs", "many", "epochs=many is not a valid int"),
        ("epochs", "true", "epochs=true is not a valid int"),
        ("epochs", True, "epochs=True is not a valid int"),
        ("epochs", "Infinity", "epochs=Infinity is not a valid int"),
        ("epochs", None, "epochs=None is not a valid int"),
        ("epochs", "0", "epochs=0 is not possible\n  fix: epochs must be at least 1"),
        ("batch_size", 0, "batch_size=0 is not possible"),
        ("lr", "fast", "lr=fast is not a valid float"),
        ("lr", "0", "lr=0.0 is not possible\n  fix: lr must be above 0"),
        ("lr", "nan", "lr=nan is not possible"),
        ("momentum", "1", "momentum=1.0 is not possible"),
        ("weight_decay", "-1", "weight_decay=-1.0 is not possible"),
        ("layer_decay", "0", "layer_decay=0.0 is not possible"),
        ("sam_radius", "-0.1", "sam_radius=-0.1 is not possible"),
        ("nesterov", "yes", "nesterov=yes is not a valid bool"),
        ("optimizer", "lion", "optimizer=lion is not possible\n  fix: optimizer must be one of sgd, adamw"),
        ("step_at_frac", "0.5,", "step_at_frac= is not a valid float"),
        ("kappa_clamp", "0.3", "kappa_clamp=0.3 is not possible\n  fix: kappa_clamp takes 2 values, comma-separated"),
        ("kappa_clamp", 0.3, "kappa_clamp=0.3 is not possible\n  fix: kappa_clamp takes comma-separated values"),
        ("kappa_shrink", "some", "kappa_shrink=some is not a valid float"),
        (
            "epoch",
            "3",
            "unknown setting 'epoch'\n  fix: did you mean epochs? valid settings: adjust, batch_size, epochs, gamma",
        ),
        ("zzz", "3", "unknown setting 'zzz'\n  fix: valid settings: adjust, batch_size"),
    ],
)
def test_apply_overrides__says_what_is_wrong(key: str, text: object, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides(cvs.Config(), {key: text})
    assert str(caught.value).startswith(said)


def test_settings__a_changed_default_keeps_its_range() -> None:
    for config, key, value in (
        (lps.Config, "batch_size", 0),  # its own default, the range of TrainSettings
        (cap.Config, "residual_weight", -1.0),
        (cvs.Config, "adjust", "la+no"),
        (la.FrozenConfig, "tau", -0.5),  # of a mixin
    ):
        with pytest.raises(ConfigError, match=r"is not (possible|known)"):
            config(**{key: value})
    assert cap.Config(residual_weight=None).residual_weight is None
    with pytest.raises(ConfigError, match="residual_weight must be above 0, or none"):
        cap.Config(residual_weight=0.0)


def test_settings__nesterov_needs_momentum() -> None:
    with pytest.raises(ConfigError, match="nesterov=True is not possible"):
        TrainSettings(nesterov=True, momentum=0.0)
    assert TrainSettings(nesterov=True).nesterov


def test_parse_assignments() -> None:
    assert parse_assignments(["lr=0.2", " name = a=b "]) == {"lr": "0.2", "name": "a=b"}
    for wrong in ("lr", "=3", " =3"):
        with pytest.raises(ConfigError, match="is not KEY=VALUE"):
            parse_assignments([wrong])
