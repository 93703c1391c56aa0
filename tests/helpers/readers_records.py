"""One or two made-up records of every public format, with the keys of the originals, and files of them."""

import copy
import csv
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ORIG = {
    "triples": [["Q1", "P19", "Q2"], ["Q2", "P37", "Q3"]],
    "triples_labeled": [["Ada", "place of birth", "Oslo"], ["Oslo", "official language", "Norwegian"]],
    "new_triples": [["Q1", "P19", "Q4"], ["Q4", "P37", "Q5"]],
    "new_triples_labeled": [["Ada", "place of birth", "Rome"], ["Rome", "official language", "Italian"]],
    "edit_triples": [["Q1", "P19", "Q4"]],
}
MQUAKE = {
    "case_id": 1,
    "requested_rewrite": [
        {
            "prompt": "{} was born in",
            "relation_id": "P19",
            "target_new": {"str": "Rome", "id": "Q4"},
            "target_true": {"str": "Oslo", "id": "Q2"},
            "subject": "Ada",
            "question": "Where was Ada born?",
        }
    ],
    "questions": ["What is spoken where Ada was born?", "Which language has the birthplace of Ada?"],
    "answer": "Norwegian",
    "answer_alias": ["Norsk"],
    "new_answer": "Italian",
    "new_answer_alias": ["it", "Italian language"],
    "single_hops": [
        {"question": "?", "cloze": "Ada was born in", "answer": "Oslo", "answer_alias": []},
        {
            "question": "?",
            "cloze": "The official language of Oslo is",
            "answer": "Norwegian",
            "answer_alias": [],
        },
    ],
    "new_single_hops": [
        {"question": "?", "cloze": "Ada was born in", "answer": "Rome", "answer_alias": ["Roma"]},
        {
            "question": "?",
            "cloze": "The official language of Rome is",
            "answer": "Italian",
            "answer_alias": ["it"],
        },
    ],
    "orig": _ORIG,
}


def _query(prompt: str, relation: str, *answers: str, second: str | None = None) -> dict[str, Any]:
    values = [{"value": value, "aliases": [f"{value} (alias)"]} for value in answers]
    query = {
        "prompt": prompt,
        "answers": values,
        "query_type": "regular",
        "subject_id": "Q1",
        "relation": relation,
        "target_ids": ["Q4"] if answers == ("Italy",) and second is None else ["Q9"],
        "phrase": None,
    }
    if second is not None:
        query |= {"query_type": "two_hop", "second_relation": second, "second_hop_target_ids": ["Q9"]}
    return query


def _test(query: dict[str, Any], *conditions: dict[str, Any]) -> dict[str, Any]:
    return {"test_queries": [query], "test_condition": "OR", "condition_queries": list(conditions)}


_CITIZENSHIP = "The name of the country of citizenship of Ada is"
RIPPLEEDITS = {
    "example_type": "popular",
    "edit": {
        "prompt": f"{_CITIZENSHIP} Italy.",
        "subject_id": "Q1",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q4",
        "previous_fact": {
            "prompt": f"{_CITIZENSHIP} Norway.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q2",
        },
    },
    "Relation_Specificity": [_test(_query("The name of the mother of Ada is", "MOTHER", "Bea"))],
    "Logical_Generalization": [],
    "Subject_Aliasing": [
        _test(
            _query(
                "The name of the country of citizenship of Lady A is", "COUNTRY_OF_CITIZENSHIP", "Italy"
            ),
            _query(
                "The name of the country of citizenship of Lady A is", "COUNTRY_OF_CITIZENSHIP", "Italy"
            ),
        )
    ],
    "Compositionality_I": [
        _test(
            _query(
                "The name of the capital city of the country of citizenship of Ada is",
                "COUNTRY_OF_CITIZENSHIP",
                "Rome",
                second="CAPITAL",
            ),
            _query("The name of the capital city of Italy is", "CAPITAL", "Rome"),
        )
    ],
    "Compositionality_II": [
        _test(
            _query(
                "The name of the country of citizenship of the mother of Cy is",
                "MOTHER",
                "Italy",
                second="COUNTRY_OF_CITIZENSHIP",
            ),
            _query("The name of the mother of Cy is", "MOTHER", "Ada", "Di"),
        )
    ],
    "Forgetfulness": [],
}
TWO_HOP_FACT = {
    "uid": "1",
    "e1.value": "Red Song",
    "e2.value": "Ada",
    "e3.value": "Bea",
    "e2.aliases": "[['Ada', 'Ada A.']]",
    "e3.aliases": "[['Bea', \"Bea O'B\"], ['B.']]",
    "r1(e1).prompt": "The singer of 'Red Song' is",
    "r2(e2).prompt": "The mother of Ada is",
    "r2(r1(e1)).prompt": "The mother of the singer of 'Red Song' is",
}
HOPPING = {
    "": "0",
    "id": "0",
    "e1_label": "Red Song",
    "e2_label": "Ada",
    "e3_label": "Bea",
    "e2_aliases": "['Ada A.']",
    "e3_aliases": "[\"Bea O'B\", 'B.']",
    "r1_template": "the performer of {}",
    "r2_template": "the mother of {}",
    "source_prompt": "the mother of the performer of Red Song is",
}
COUNTERFACT = {
    "case_id": 0,
    "pararel_idx": 2796,
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "relation_id": "P103",
        "target_new": {"str": "English", "id": "Q1860"},
        "target_true": {"str": "French", "id": "Q150"},
        "subject": "Ada",
    },
    "paraphrase_prompts": ["It rains. Ada, a native", "The mother language of Ada is "],
    "neighborhood_prompts": ["The mother tongue of Bea is"],
    "attribute_prompts": ["The mother tongue of Cy is"],
    "generation_prompts": ["Ada's mother tongue is"],
}
KNOWN_1000 = {
    "known_id": 0,
    "subject": "Red Peak",
    "attribute": "Asia",
    "template": "{} is located in the continent",
    "prediction": " of Asia. It is",
    "prompt": "Red Peak is located in the continent of",
    "relation_id": "P30",
}
LRE = {
    "name": "country capital",
    "prompt_templates": ["The capital of {} is", "{} has the capital"],
    "prompt_templates_zs": ["What is the capital of {}? It is"],
    "properties": {
        "relation_type": "factual",
        "domain_name": "country",
        "range_name": "city",
        "symmetric": False,
    },
    "samples": [{"subject": "Italy", "object": "Rome"}, {"subject": "Norway", "object": "Oslo"}],
}
REVERSAL = {
    "prompt": "Ada, known far and wide for being",
    "completion": " the first to cross the Red Peak.",
}
PARENTS = {
    "child": "Ada",
    "parent": "Bea",
    "parent_type": "mother",
    "child_prediction": "Cy",
    "can_reverse": "True",
}
EASYEDIT = {  # the keys of KnowEdit's Wiki_counterfact, and those of EasyEdit's own files
    "subject": "Ada",
    "prompt": "The place of birth of Ada is",
    "target_new": "Rome",
    "ground_truth": ["Oslo", "Christiania"],
    "rephrase_prompt": "Ada was born in",
    "portability": {
        "Logical_Generalization": [{"prompt": "Born in Rome was", "ground_truth": [["Ada", "Lady A"]]}],
        "Reasoning": [
            {
                "prompt": "The name of the country of the place of birth of Ada is",
                "ground_truth": [["Italy", "Italia"], ["Roman Empire"]],
            },
            {
                "prompt": "The name of the patron saint of the place of birth of Ada is",
                "ground_truth": [""],
            },
        ],
        "Subject_Aliasing": [
            {"prompt": "The place of birth of Lady A is", "ground_truth": ["Rome", "Roma"]}
        ],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": "The name of the mother of Ada is", "ground_truth": [["Bea"]]}]
    },
}
ZSRE = {
    "subject": "Ada",
    "src": "Where was Ada born?",
    "pred": "Bergen",
    "rephrase": "What is the birthplace of Ada?",
    "alt": "Rome",
    "answers": ["Oslo"],
    "loc": "nq question: who sang Red Song",
    "loc_ans": "Cy",
    "cond": "Oslo >> Rome || Where was Ada born?",
    "portability": {
        "Recalled Relation": "(Rome, country, Italy)",
        "New Question": "In which country was Ada born?",
        "New Answer": "Italy",
    },
}
ALPACA = {"instruction": "Name the place of birth of:", "input": "Ada", "output": "Rome."}
MESSAGES = {
    "messages": [
        {"role": "user", "content": "Where was Ada born?"},
        {"role": "assistant", "content": "In Rome."},
    ]
}
OWN = {
    "prompt": "Ada lives in",
    "answer": "Rome",
    "options": ["Rome", "Oslo"],
    "subject": "Ada",
    "aliases": ["Roma"],
    "role": "fact",
    "case": "ada",
}
NLI = {
    **{"gold_label": "entailment", "sentence1": "Ada and Bob left.", "sentence2": "Ada left."},
    **{"pairID": "ex0", "heuristic": "subsequence", "subcase": "conjunction", "template": "temp1"},
}
PAIRS = {"premise": "Ada and Bob left.", "hypothesis": "Ada left.", "label": "entailment"}
RECORDS: dict[str, dict[str, Any]] = {
    "mquake": MQUAKE,
    "rippleedits": RIPPLEEDITS,
    "twohopfact": TWO_HOP_FACT,
    "hopping": HOPPING,
    "counterfact": COUNTERFACT,
    "known_1000": KNOWN_1000,
    "lre": LRE,
    "reversal": REVERSAL,
    "parents": PARENTS,
    "easyedit": EASYEDIT,
    "zsre": ZSRE,
    "alpaca": ALPACA,
    "messages": MESSAGES,
    "nli": NLI,
    "pairs": PAIRS,
    "prompts": OWN,
}
TABLES = ("twohopfact", "hopping", "parents")
"""The formats whose originals are CSV."""


def said(prompts: Iterable[Any]) -> list[tuple[str, str]]:
    return [(p.text, p.answer) for p in prompts]


def renamed(record: Any, old: str, new: str) -> Any:
    """Return the same record about another person."""
    return json.loads(json.dumps(record).replace(old, new))


def written(folder: Path, format: str, *records: Any) -> Path:
    """Write records to a file in the form that the format's originals have."""
    records = tuple(copy.deepcopy(record) for record in records)
    if format in TABLES:
        path = folder / f"{format}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(records[0]))
            table.writeheader()
            table.writerows(records)
    elif format == "lre" and len(records) == 1:
        path = folder / "relation.json"
        path.write_text(json.dumps(records[0], indent=4), encoding="utf-8")
    elif format in ("reversal", "messages", "prompts", "pairs"):
        path = folder / f"{format}.jsonl"
        path.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")
    else:
        path = folder / f"{format}.json"
        path.write_text(json.dumps(records, indent=2, ensure_ascii=False), encoding="utf-8")
    return path


def one_sentence(message: str) -> str:
    """Check that an error is one sentence, and return it."""
    assert "\n" not in message and len(message) < 1500 and message.strip()
    message.encode("utf-8")  # a terminal cannot show half of a surrogate pair
    return message
