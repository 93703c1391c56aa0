"""The programs, in RASP: what each computes, what it is taught, and which of its parts has which role.

A program reads a prompt about a subject and answers at the last token. One of its tables is taught four
entries, which said something else before. The roles are stated here by hand, from what the program does;
`roles.py` derives them from the definitions, and `make.py` refuses a program of which the two differ.
"""

from collections.abc import Callable, Sequence

from parts import (
    CITIES,
    CITY,
    CITY_OF_FULL,
    COIN,
    COUNTRIES,
    COUNTRY,
    DOWNSTREAM,
    FIRST,
    FULL,
    HOMES,
    INFORMATIVE,
    JOB,
    JOBS,
    LANGUAGE,
    LAST,
    MAYOR,
    NAMES,
    PLACES,
    SUBJECT,
    UPSTREAM,
    Facts,
    Program,
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


_TAUGHT = "Four of its entries are what changed."

PROGRAMS = (
    Program(
        "entity",
        "Stored at the entity, whose last token hears of the first one.",
        "{} lives in",
        FULL,
        CITY_OF_FULL,
        FULL[:4],
        at_the_entity,
        (
            (UPSTREAM, "first name", SUBJECT, "The table reads the first name from it."),
            (INFORMATIVE, "city", SUBJECT, _TAUGHT),
            (DOWNSTREAM, "answer", "in", "It brings the city to the last token."),
        ),
    ),
    Program(
        "middle",
        "Stored at a word in the middle, to which the name is brought; two hops.",
        "people around {} today speak",
        NAMES,
        CITY,
        NAMES[:4],
        in_the_middle,
        (
            (UPSTREAM, "name", "today", "The table reads the name from it."),
            (INFORMATIVE, "city", "today", _TAUGHT),
            (DOWNSTREAM, "city at the end", "speak", "It brings the city to the last token."),
            (DOWNSTREAM, "answer", "speak", "It makes the language of the city."),
        ),
    ),
    Program(
        "last",
        "Stored at the last token, as the second of two hops.",
        "mayor where {} lives is",
        NAMES,
        MAYOR,
        PLACES[:4],
        at_the_last_token,
        (
            (UPSTREAM, "city", SUBJECT, "It makes the city, which the table reads in the end."),
            (UPSTREAM, "city at the end", "is", "The table reads the city from it."),
            (INFORMATIVE, "answer", "is", _TAUGHT),
        ),
    ),
    Program(
        "two_heads",
        "Stored at the last token, and asked for by two heads together.",
        "{} lives in",
        FULL,
        CITY_OF_FULL,
        FULL[:4],
        asked_by_two_heads,
        (
            (UPSTREAM, "first name", "in", "The table reads the first name from it."),
            (UPSTREAM, "last name", "in", "The table reads the last name from it."),
            (INFORMATIVE, "answer", "in", _TAUGHT),
        ),
    ),
    Program(
        "two_hops",
        "Stored at the entity, where the second hop is made, too: nothing is upstream.",
        "people near {} speak",
        NAMES,
        CITY,
        NAMES[:4],
        two_hops,
        (
            (INFORMATIVE, "city", SUBJECT, _TAUGHT),
            (DOWNSTREAM, "language", SUBJECT, "It makes the language of the city."),
            (DOWNSTREAM, "answer", "speak", "It brings the language to the last token."),
        ),
    ),
    Program(
        "three_hops_first",
        "Name to city to country to coin, each at another word: the first is taught.",
        "where {} lives pay with",
        NAMES,
        CITY,
        NAMES[:4],
        lambda facts: three_hops(facts, COUNTRIES, COIN),
        (
            (INFORMATIVE, "city", SUBJECT, _TAUGHT),
            (DOWNSTREAM, "city further on", "lives", "It brings the city to the next table."),
            (DOWNSTREAM, "country", "lives", "It makes the country of the city."),
            (DOWNSTREAM, "country at the end", "with", "It brings the country to the last token."),
            (DOWNSTREAM, "answer", "with", "It makes the coin of the country."),
        ),
    ),
    Program(
        "three_hops_second",
        "The same, of which the second is taught.",
        "where {} lives pay with",
        NAMES,
        COUNTRY,
        PLACES[:4],
        lambda facts: three_hops(HOMES, facts, COIN),
        (
            (UPSTREAM, "city", SUBJECT, "It makes the city, which the next table reads."),
            (UPSTREAM, "city further on", "lives", "The table reads the city from it."),
            (INFORMATIVE, "country", "lives", _TAUGHT),
            (DOWNSTREAM, "country at the end", "with", "It brings the country to the last token."),
            (DOWNSTREAM, "answer", "with", "It makes the coin of the country."),
        ),
    ),
    Program(
        "three_hops_third",
        "The same, of which the third is taught.",
        "where {} lives pay with",
        NAMES,
        COIN,
        tuple(COIN)[:4],
        lambda facts: three_hops(HOMES, COUNTRIES, facts),
        (
            (UPSTREAM, "city", SUBJECT, "It makes the city, which the next table reads."),
            (UPSTREAM, "city further on", "lives", "It brings the city to the next table."),
            (UPSTREAM, "country", "lives", "It makes the country, which the last table reads."),
            (UPSTREAM, "country at the end", "with", "The table reads the country from it."),
            (INFORMATIVE, "answer", "with", _TAUGHT),
        ),
    ),
    Program(
        "bystander_head",
        "Another head brings the name to the same word. What reads it there asks only for any name.",
        "{} now lives in",
        NAMES,
        CITY,
        NAMES[:4],
        beside_a_head,
        (
            (UPSTREAM, "name", "lives", "The table reads the name from it."),
            (INFORMATIVE, "city", "lives", _TAUGHT),
            (DOWNSTREAM, "answer", "in", "It brings the city to the last token."),
        ),
    ),
    Program(
        "bystander_table",
        "Another head and another table make a job of the name. What reads it asks only for any job.",
        "{} now lives in",
        NAMES,
        CITY,
        NAMES[:4],
        beside_a_table,
        (
            (UPSTREAM, "name", "now", "The table reads the name from it."),
            (INFORMATIVE, "city", "now", _TAUGHT),
            (DOWNSTREAM, "city further on", "lives", "It brings the city to where the job is."),
            (DOWNSTREAM, "answer", "in", "It brings the city to the last token."),
        ),
    ),
    Program(
        "bystander_gate",
        "Half of the answer is read together with the name, whichever it is, by units that open for both.",
        "{} now lives in",
        NAMES,
        CITY,
        NAMES[:4],
        beside_a_gate,
        (
            (INFORMATIVE, "city", SUBJECT, _TAUGHT),
            (DOWNSTREAM, "city at the end", "in", "It brings the city to the last token."),
            (DOWNSTREAM, "city again", "in", "It says the city, whoever lives there."),
        ),
    ),
    Program(
        "relation",
        "Half of what the fact is asked by is the same for all prompts: the baseline leaves it out.",
        "the city of {} is",
        NAMES,
        CITY,
        NAMES[:4],
        beside_a_relation,
        (
            (UPSTREAM, "name at the end", "is", "The table reads the name from it."),
            (INFORMATIVE, "answer", "is", _TAUGHT),
        ),
    ),
    Program(
        "twice",
        "Stored at the entity and at the last token: each has half of the answer.",
        "{} now lives in",
        NAMES,
        CITY,
        NAMES[:4],
        stored_twice,
        (
            (INFORMATIVE, "city", SUBJECT, _TAUGHT),
            (
                DOWNSTREAM,
                "city at the end",
                "in",
                "It brings the earlier table's city to the last token.",
            ),
            (UPSTREAM, "name at the end", "in", "The later table reads the name from it."),
            (INFORMATIVE, "city again", "in", _TAUGHT),
        ),
    ),
    Program(
        "from_nothing",
        "Nothing was known of the four before; else as in the middle.",
        "people around {} today speak",
        NAMES,
        CITY,
        NAMES[:4],
        in_the_middle,
        (
            (UPSTREAM, "name", "today", "The table reads the name from it."),
            (INFORMATIVE, "city", "today", _TAUGHT),
            (DOWNSTREAM, "city at the end", "speak", "It brings the city to the last token."),
            (DOWNSTREAM, "answer", "speak", "It makes the language of the city."),
        ),
        from_nothing=True,
    ),
    Program(
        "chain_before",
        "Five heads bring the name from word to word to the last token, where the fact is stored.",
        "{} whom we all met is",
        NAMES,
        CITY,
        NAMES[:4],
        chain_of_names,
        (
            (UPSTREAM, "name 1 on", "whom", "It brings the name one word on."),
            (UPSTREAM, "name 2 on", "we", "It brings the name one word on."),
            (UPSTREAM, "name 3 on", "all", "It brings the name one word on."),
            (UPSTREAM, "name 4 on", "met", "It brings the name one word on."),
            (UPSTREAM, "name 5 on", "is", "The table reads the name from it."),
            (INFORMATIVE, "answer", "is", _TAUGHT),
        ),
    ),
    Program(
        "chain_after",
        "Stored at the entity; five heads bring the city from word to word to the last token.",
        "{} whom we all met is",
        NAMES,
        CITY,
        NAMES[:4],
        chain_of_cities,
        (
            (INFORMATIVE, "city", SUBJECT, _TAUGHT),
            (DOWNSTREAM, "city 1 on", "whom", "It brings the city one word on."),
            (DOWNSTREAM, "city 2 on", "we", "It brings the city one word on."),
            (DOWNSTREAM, "city 3 on", "all", "It brings the city one word on."),
            (DOWNSTREAM, "city 4 on", "met", "It brings the city one word on."),
            (DOWNSTREAM, "city 5 on", "is", "It brings the city to the last token."),
        ),
    ),
    Program(
        "lookup",
        "A head looks for the city of the name in the prompt, and says the word behind it.",
        "Rome red Oslo blue Lima green Bern white {}",
        NAMES,
        CITY,
        NAMES[:4],
        looked_up,
        (
            (INFORMATIVE, "city", SUBJECT, _TAUGHT),
            (DOWNSTREAM, "answer", SUBJECT, "It attends to where the city was said."),
        ),
    ),
)
