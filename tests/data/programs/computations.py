"""What the programs compute, in RASP: from the facts of a table to the answer at the last token."""

from collections.abc import Callable, Sequence

from parts import (
    CITIES,
    FIRST,
    HOMES,
    JOB,
    JOBS,
    LANGUAGE,
    LAST,
    NAMES,
    Facts,
    carried,
    found_by,
    passed_on,
    table,
    table_of_two,
)
from tracr.rasp import rasp


def city_of_full(facts: Facts) -> Callable:
    return lambda first, last: facts.get(f"{first} {last}")


# --- Where the fact is stored ---


def at_the_entity(facts: Facts) -> Sequence[rasp.SOp]:
    first = carried("first name", rasp.tokens, FIRST, LAST)
    return [carried("answer", table_of_two("city", city_of_full(facts), first, rasp.tokens), LAST, ["in"])]


def in_the_middle(facts: Facts) -> Sequence[rasp.SOp]:
    name = carried("name", rasp.tokens, NAMES, ["today"])
    city = carried("city at the end", table("city", facts, name), ["today"], ["speak"])
    return [table("answer", LANGUAGE, city)]


def at_the_last_token(facts: Facts) -> Sequence[rasp.SOp]:
    city = carried("city at the end", table("city", HOMES, rasp.tokens), NAMES, ["is"])
    return [table("answer", facts, city)]


def asked_by_two_heads(facts: Facts) -> Sequence[rasp.SOp]:
    first = carried("first name", rasp.tokens, FIRST, ["in"])
    last = carried("last name", rasp.tokens, LAST, ["in"])
    return [table_of_two("answer", city_of_full(facts), first, last)]


# --- Two hops and three ---


def two_hops(facts: Facts) -> Sequence[rasp.SOp]:
    language = table("language", LANGUAGE, table("city", facts, rasp.tokens))
    return [carried("answer", language, NAMES, ["speak"])]


def three_hops(city: Facts, country: Facts, coin: Facts) -> Sequence[rasp.SOp]:
    of_name = carried("city further on", table("city", city, rasp.tokens), NAMES, ["lives"])
    of_city = carried("country at the end", table("country", country, of_name), ["lives"], ["with"])
    return [table("answer", coin, of_city)]


# --- What else reads the name ---


def beside_a_head(facts: Facts) -> Sequence[rasp.SOp]:
    city = table("city", facts, carried("name", rasp.tokens, NAMES, ["lives"]))
    bystander = carried("bystander", rasp.tokens, NAMES, ["lives"])
    return [found_by("answer", city, bystander, NAMES, ["in"])]


def beside_a_table(facts: Facts) -> Sequence[rasp.SOp]:
    name = carried("name", rasp.tokens, NAMES, ["now"])
    city = carried("city further on", table("city", facts, name), ["now"], ["lives"])
    bystander = table("bystander", JOB, carried("bystander's name", name, ["now"], ["lives"]))
    return [found_by("answer", city, bystander, JOBS, ["in"])]


def beside_a_gate(facts: Facts) -> Sequence[rasp.SOp]:
    city = carried("city at the end", table("city", facts, rasp.tokens), NAMES, ["in"])
    bystander = carried("bystander", rasp.tokens, NAMES, ["in"])
    return [city, table_of_two("city again", lambda city, name: city, city, bystander)]


def beside_a_relation(facts: Facts) -> Sequence[rasp.SOp]:
    name = carried("name at the end", rasp.tokens, NAMES, ["is"])
    relation = carried("relation", rasp.tokens, ["city"], ["is"])
    return [table_of_two("answer", lambda n, r: facts.get(n) if r == "city" else None, name, relation)]


# --- More than one way, and longer ways ---


def stored_twice(facts: Facts) -> Sequence[rasp.SOp]:
    early = carried("city at the end", table("city", facts, rasp.tokens), NAMES, ["in"])
    late = table("city again", facts, carried("name at the end", rasp.tokens, NAMES, ["in"]))
    return [early, late]


def chain_of_names(facts: Facts) -> Sequence[rasp.SOp]:
    name = rasp.tokens
    for steps in range(1, 6):
        name = passed_on(f"name {steps} on", name)
    return [table("answer", facts, name)]


def chain_of_cities(facts: Facts) -> Sequence[rasp.SOp]:
    city = table("city", facts, rasp.tokens)
    for steps in range(1, 6):
        city = passed_on(f"city {steps} on", city)
    return [city]


def looked_up(facts: Facts) -> Sequence[rasp.SOp]:
    city = table("city", facts, rasp.tokens)
    behind = passed_on("word before", rasp.tokens)
    there = rasp.Select(behind, city, lambda key, query: key == query and key in CITIES)
    return [rasp.Aggregate(there, rasp.tokens).named("answer")]
