"""A sentence in, a JSON object out.

Distinct (template, operands), exact: person, per wording 40·32·80·24·14 = 34 million; order 9000·88·10·14·40
> 4·10⁹; meeting 40·7·28·12·10·12·24 > 2·10⁸; stock 14·10·900·98·24 > 2·10⁸.
"""

from __future__ import annotations

import json
import random

from tasks.words import CITIES, COLOURS, DAYS, FIRST_NAMES, ITEMS, JOBS, MONTHS, SURNAMES


def person(rng):
    name = f"{rng.choice(FIRST_NAMES)} {rng.choice(SURNAMES)}"
    return {"name": name, "age": rng.randint(18, 97), "city": rng.choice(CITIES), "job": rng.choice(JOBS)}


def order(rng):
    return {
        "order": rng.randint(1000, 9999),
        "item": rng.choice(ITEMS),
        "color": rng.choice(COLOURS),
        "quantity": rng.randint(2, 89),
        "customer": rng.choice(FIRST_NAMES),
    }


def meeting(rng):
    time = f"{rng.randint(8, 17):02d}:{rng.randrange(0, 60, 5):02d}"
    date = f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"
    return {
        "with": rng.choice(FIRST_NAMES),
        "day": rng.choice(DAYS),
        "date": date,
        "time": time,
        "city": rng.choice(CITIES),
    }


def stock(rng):
    return {
        "item": rng.choice(ITEMS),
        "color": rng.choice(COLOURS),
        "price": rng.randint(100, 999),
        "stock": rng.randint(2, 99),
        "city": rng.choice(CITIES),
    }


WORDINGS = {
    person: (
        "{name}, {age}, lives in {city} and works as a {job}.",
        "The {job} {name} from {city} is {age} years old.",
    ),
    order: (
        "Order {order}: {quantity} {color} {item}s for {customer}.",
        "{customer} wants {quantity} {item}s in {color}, order number {order}.",
    ),
    meeting: (
        "Meet {with} in {city} on {day}, {date}, at {time}.",
        "On {day} {date} at {time} there is a meeting with {with} in {city}.",
    ),
    stock: (
        "The {color} {item} costs {price} euros and the shop in {city} has {stock}.",
        "There are {stock} pieces of the {color} {item} in {city}, for {price} euros each.",
    ),
}


def draw(rng: random.Random):
    """(template, operands, message, completion, checks) of a random sentence and its JSON object."""
    kind = rng.choice(tuple(WORDINGS))
    wording = rng.randrange(len(WORDINGS[kind]))
    record = kind(rng)
    message = f"Extract JSON. {WORDINGS[kind][wording].format(**record)}"
    return f"{kind.__name__}/{wording}", tuple(record.values()), message, json.dumps(record), ()
