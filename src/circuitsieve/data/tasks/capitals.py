"""Capitals: recall of a fact.

"The capital of France is the city of" -> " Paris". The corrupted prompt names another country of the same number of tokens.
This file knows words and sentences, never tokens: countries of one request take the same number of tokens.
"""

import random

from circuitsieve.data.pairs import Pair, TaskRequest, TextSplits
from circuitsieve.data.tasks import Task, making

CAPITALS = dict(
    line.split(":")
    for line in """
        Albania:Tirana Algeria:Algiers Argentina:Buenos_Aires Armenia:Yerevan Australia:Canberra Austria:Vienna
        Bangladesh:Dhaka Belgium:Brussels Brazil:Brasília Bulgaria:Sofia Cambodia:Phnom_Penh Cameroon:Yaoundé Canada:Ottawa
        Chile:Santiago China:Beijing Colombia:Bogotá Croatia:Zagreb Cuba:Havana Denmark:Copenhagen Ecuador:Quito Egypt:Cairo
        Estonia:Tallinn Ethiopia:Addis_Ababa Finland:Helsinki France:Paris Georgia:Tbilisi Germany:Berlin Ghana:Accra
        Greece:Athens Hungary:Budapest Iceland:Reykjavik India:Delhi Indonesia:Jakarta Iran:Tehran Iraq:Baghdad Ireland:Dublin
        Israel:Jerusalem Italy:Rome Jamaica:Kingston Japan:Tokyo Jordan:Amman Kenya:Nairobi Latvia:Riga Lebanon:Beirut
        Libya:Tripoli Lithuania:Vilnius Malaysia:Kuala_Lumpur Mali:Bamako Malta:Valletta Mongolia:Ulaanbaatar Morocco:Rabat
        Nepal:Kathmandu Netherlands:Amsterdam Nigeria:Abuja Norway:Oslo Pakistan:Islamabad Peru:Lima Philippines:Manila
        Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest Russia:Moscow Rwanda:Kigali Senegal:Dakar Serbia:Belgrade
        Slovakia:Bratislava Slovenia:Ljubljana Somalia:Mogadishu Spain:Madrid Sudan:Khartoum Sweden:Stockholm Switzerland:Bern
        Syria:Damascus Thailand:Bangkok Tunisia:Tunis Turkey:Ankara Uganda:Kampala Ukraine:Kyiv Uruguay:Montevideo
        Venezuela:Caracas Vietnam:Hanoi Zambia:Lusaka Zimbabwe:Harare
    """.split()  # noqa: SIM905 (words, not a list literal, to stay readable)
)
"""Capitals of countries whose name is one word; an underscore is a space."""

TEMPLATES = [
    "The capital of {country} is the city of",
    "The capital city of {country} is called",
    "Everyone knows that the capital of {country} is",
    "The government of {country} sits in its capital,",
    "The largest airport of {country} is near its capital,",
    "They moved to {country} and live in the capital,",
    "Our trip through {country} began in the capital,",
    "Question: what is the capital of {country}? Answer:",
    "The embassy stands in the capital of {country},",
    "She was born in the capital of {country},",
]

SMALLEST = 15
"""Fewest countries of one token count: three splits of five."""


def build(request: TaskRequest) -> TextSplits:
    """The pairs of `request`: no country stands in two splits, as a clean or as a corrupted one.

    Raises:
        ConfigError: an option is given; there are none.
        DataError: too few countries take the same number of tokens.
    """
    making.chosen(TASK.name, {}, request.options)
    usable = making.of_one_length(TASK.name, "countries", CAPITALS, request.tokens_in, SMALLEST)
    countries = making.split(usable, random.Random(f"capitals words {request.seed}"), at_least=5)

    def make(split: str) -> tuple[Pair, ...]:
        own = countries[split]

        def fill(template: str, number: int, _: random.Random) -> Pair:
            first, second = making.digits(number, len(own), len(own) - 1)
            country, other = own[first], own[second + (second >= first)]
            clean, corrupted = (template.format(country=name) for name in (country, other))
            name = f"capital-{TEMPLATES.index(template) + 1:02d}"
            return Pair(clean, corrupted, (_capital(country),), (_capital(other),), template=name)

        return making.spread(
            f"capitals-{split}",
            getattr(request, split),
            TEMPLATES,
            len(own) * (len(own) - 1),
            fill,
            random.Random(f"capitals {split} {request.seed}"),
        )

    return making.splits(make)


def _capital(country: str) -> str:
    return " " + CAPITALS[country].replace("_", " ")


TASK = Task(
    name="capitals",
    summary="capitals: factual recall of the capital of a country",
    build=build,
)
