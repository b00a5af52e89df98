import pytest

from engine.bands import BANDS, channel_of, check_bands, in_wavelength_order
from engine.errors import UnknownBand


def test_landsat_near_infrared_answers_to_nir():
    assert channel_of("nir", ("red", "nir08")) == 1
    assert channel_of("nir", ("nir08", "nir")) == 1
    assert channel_of("swir16", ("red", "nir08")) is None


def test_a_misspelt_band_is_refused_with_the_right_spelling():
    with pytest.raises(UnknownBand, match="swir16"):
        check_bands(("blue", "green", "red", "swir"))


def test_a_band_given_twice_is_refused():
    with pytest.raises(UnknownBand, match="given twice: red"):
        check_bands(("blue", "red", "red"))


def test_a_missing_required_band_is_named():
    with pytest.raises(UnknownBand, match="missing: green"):
        check_bands(("blue", "red"), required=("blue", "green"))


def test_bands_stand_in_wavelength_order():
    names = [band.name for band in BANDS]
    assert list(in_wavelength_order(sorted(names))) == names
