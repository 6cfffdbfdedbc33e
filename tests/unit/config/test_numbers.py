# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers as they are compared: every way to write one, and what it may cost."""

from __future__ import annotations

import pytest

from gateway.config.numbers import called
from gateway.config.sections import OutboundSettings
from gateway.planning.sip import OutboundCaps

PREMIUM = (
    "09001234567",
    "0900 1 234567",
    "0900-1/234.567",
    "+499001234567",
    "+4909001234567",
    "+49 (0) 900 1234567",
    "00499001234567",
    "000499001234567",
    "+004990012345",
    "0049900123456",
    "4990012345678",
    "+49900123",
    "+499001234567890123",
    "tel:+49-900-1234567",
    "tel:09001234567",
    "tel:9001234567;phone-context=+49",
    "tel:1234567;phone-context=+49900",
    "TEL:+499001234567",
    "sip:09001234567@pbx",
    "sip:+499001234567@pbx;user=phone",
    "sip:9001234567;phone-context=+49@pbx;user=phone",
    "sip:%30%39%30%301234567@pbx",
    "sip:%2530900123@pbx",
    "sip:%2B499001234567@pbx",
    "sips:0900%201234567@pbx",
    "sip:09001234567:secret@pbx",
    "sip:*31%2309001234567@pbx",
    "#31#09001234567",
    "٠٩٠٠١٢٣٤٥٦٧",
    "\uff0b499001234567",
    "+49\u200b9001234567",
    "+49\u20119001234567",
)


@pytest.mark.parametrize("to", PREMIUM)
def test_a_premium_number_however_it_is_written(to: str) -> None:
    home = OutboundCaps(
        OutboundSettings(
            enabled=True, country="DE", allowed_prefixes=("+49", "0", "00", "+", "*", "#")
        )
    )
    refused = home.refusal(to, 0, 0.0, on_demand=True)
    assert refused is not None
    assert "premium_rate" in called(to, "DE").classes
    for by_pattern in (False, True):
        for country in ("DE", ""):
            caps = OutboundCaps(
                OutboundSettings(
                    enabled=True, country=country, allowed_prefixes=("",), denied_prefixes=("0900",)
                )
            )
            rule = caps.refusal(to, 0, 0.0, on_demand=False, by_pattern=by_pattern)
            if country or not to.startswith("4990"):  # nobody could know
                assert rule == "outbound.denied_prefixes has '0900'", (country, rule)


@pytest.mark.parametrize(
    ("to", "country", "rule"),
    [
        ("+4930123456", "DE", None),
        ("030123456", "DE", None),
        ("0049301234567", "DE", None),
        ("4930123456", "DE", None),
        ("+491701234567", "DE", None),
        ("+498001234567", "DE", None),
        ("+491801234567", "DE", "'shared_cost'"),
        ("+4970012345678", "DE", "'personal_number'"),
        ("+88216123456", "DE", "'international'"),
        ("+8707731234567", "DE", "'international'"),
        ("+97912345678", "DE", "'international'"),
        ("+43190", "DE", "'international'"),
        ("112", "DE", "'emergency'"),
        ("110", "DE", "'emergency'"),
        ("1002", "DE", None),
        ("anna", "DE", None),
        ("2125551234", "US", None),
        ("+12125551234", "US", None),
        ("9005551234", "US", "'premium_rate'"),
        ("+18765551234", "US", "'international'"),
        ("8765551234", "US", "'international'"),
        ("0114930123456", "US", "'international'"),
        ("911", "US", "'emergency'"),
        ("+447700900123", "GB", None),
        ("+447624123456", "GB", "'international'"),
        ("+449098790000", "GB", "'premium_rate'"),
        ("+390612345678", "IT", None),
        ("0612345678", "IT", None),
    ],
)
def test_classes(to: str, country: str, rule: str | None) -> None:
    caps = OutboundCaps(OutboundSettings(enabled=True, country=country, allowed_prefixes=("",)))
    found = caps.refusal(to, 0, 0.0, on_demand=True)
    assert found == (None if rule is None else f"outbound.allowed_classes has no {rule}")


@pytest.mark.parametrize(
    ("allowed", "to", "permitted"),
    [
        (("+49",), "030123456", True),
        (("030",), "+4930123456", True),
        (("0049",), "+4930123456", True),
        (("+49",), "+4430123456", False),
        (("0",), "004420123456", False),
        (("+44",), "+442079460000", True),
        (("0044",), "+442079460000", True),
        (("+",), "+442079460000", False),
        (("1",), "1002", True),
        (("1",), "+12125551234", False),
        (("+1",), "1002", False),
        (("+49",), "anna", False),
        (("an",), "sip:anna@pbx", True),
        ((), "030123456", False),
    ],
)
def test_permitted_destinations(allowed: tuple[str, ...], to: str, permitted: bool) -> None:
    settings = OutboundSettings(country="DE", allowed_prefixes=allowed)
    rule = OutboundCaps(settings).destination_refusal(to, on_demand=True, by_pattern=False)
    assert (rule is None) is permitted, rule


def test_a_country_that_shares_its_code() -> None:
    """``+1`` names no island whose numbers cost a dollar a minute."""
    for allowed, permitted in ((("+1",), False), (("+1876",), True)):
        settings = OutboundSettings(country="US", allowed_prefixes=allowed)
        rule = OutboundCaps(settings).destination_refusal("+18765551234", True, False)
        assert (rule is None) is permitted


def test_classes_that_are_opened() -> None:
    settings = OutboundSettings(
        country="DE", allowed_prefixes=("0900",), allowed_classes=("premium_rate",)
    )
    assert OutboundCaps(settings).destination_refusal("+499001234567", True, False) is None


def test_who_chose_the_number() -> None:
    """What the dialplan says itself is only held against what is denied."""
    settings = OutboundSettings(country="DE", allowed_prefixes=("+49",), denied_prefixes=("0900",))
    caps = OutboundCaps(settings)
    abroad, extension = "tel:+442079460000", "sip:1002@pbx"
    assert caps.destination_refusal(abroad, False, False) is None
    assert caps.destination_refusal("tel:+49900123", False, False) is not None
    assert caps.destination_refusal(abroad, False, True) is not None
    assert caps.destination_refusal(extension, False, True) is None
    assert caps.destination_refusal(extension, True, False) is not None


@pytest.mark.parametrize("to", ["", "sip:", "tel:", "+", "sip:@", "%", "*#", "+" + "9" * 5000])
def test_what_is_no_number(to: str) -> None:
    assert not called(to, "DE").classes - {"international"}


BEHIND_SOMETHING = """
030@09001234567@h 09001234567890123456789
+499001234567890123456789 +49900111111111111111111 0049900111111111111111111
010130088216123456 0101309001234567 01013|0018765551234 +49|010|13|0900|123 0900CALLNOW
0,09001234567
0w09001234567 0p09001234567 9;09001234567 !09001234567 ~0900123456 =0900 0900~1234567 0900!1234
0900'1234 0900$1 0900+1234567 +49+9001234567 ++499001234567 00+499001234567 +49900a \\09001234567
user%4009001234567@h a:09001234567@h 0900123456*1 %2525302B49900 011833 +4911833 0120012345
019912345 118|33 +4930123456;rn=+49900123456 +4930123456;npdi;rn=+49900123456
+4930123456%3Brn=+49900123456 +4930123456;cic=01013 +4930123456;tgrp=a;trunk-context=b
+4930123456;postd=0900123456 +4930123456;X=1 reception;rn=+49900123456 tel:+4930123456;rn=+49900123
"""
"""Premium, satellite and foreign numbers that something stands before, in, or behind."""


@pytest.mark.parametrize("dialled", BEHIND_SOMETHING.split())
@pytest.mark.parametrize("who", [(True, False), (False, True)], ids=["on demand", "by pattern"])
def test_what_stands_around_a_number_opens_nothing(dialled: str, who: tuple[bool, bool]) -> None:
    settings = {"enabled": True, "country": "DE", "allowed_prefixes": ["+49"]}
    caps = OutboundCaps(OutboundSettings.model_validate(settings))
    user = dialled.replace("|", " ")
    uri = f"sip:{user}" if "@" in user else f"sip:{user}@127.0.0.1"
    assert caps.destination_refusal(uri, *who) is not None


@pytest.mark.parametrize("dialled", ["101028819005551234", "1010288 19005551234", "19005551234"])
def test_the_choice_of_a_carrier_opens_nothing(dialled: str) -> None:
    settings = {"enabled": True, "country": "US", "allowed_prefixes": ["+1"]}
    caps = OutboundCaps(OutboundSettings.model_validate(settings))
    assert caps.destination_refusal(f"sip:{dialled}@h", True, False) is not None


@pytest.mark.parametrize(
    "user",
    [
        *("reception", "1001", "+49 (0) 30 12345", "sales.de", "room-12"),
        *("+493012345;cpc=ordinary", "3012345;phone-context=+49", "+493012345;ext=12;isub=1"),
    ],
)
def test_names_and_extensions_stay_names_and_extensions(user: str) -> None:
    settings = {"enabled": True, "country": "DE", "allowed_prefixes": ["+49"]}
    caps = OutboundCaps(OutboundSettings.model_validate(settings))
    assert caps.destination_refusal(f"sip:{user}@pbx", False, True) is None
