use std::path::Path;

use proptest::prelude::*;

use super::*;

/// The variables of a text, as Python prints them.
fn values(text: &str) -> Vec<(String, String)> {
    let evaluated = evaluate(text, Path::new("a.py"), None).unwrap();
    evaluated.variables.iter().map(|(name, item)| (name.clone(), item.value.to_string())).collect()
}

fn value(text: &str, name: &str) -> String {
    values(text).into_iter().find(|(found, _)| found == name).map(|(_, value)| value).unwrap()
}

#[test]
fn literals_names_and_arithmetic_are_evaluated() {
    for (expression, expected) in [
        ("None", "None"),
        ("-1", "-1"),
        ("1_000 * 2", "2000"),
        ("0x10", "16"),
        ("1e-3", "0.001"),
        ("0.0001 * 2", "0.0002"),
        ("0.02 / 8", "0.0025"),
        ("7 // 2 * 2 + 1", "7"),
        ("-7 // 2", "-4"),
        ("7 // -2", "-4"),
        ("2 ** 10", "1024"),
        ("7 % 4", "3"),
        ("'a' + \"b\" 'c'", "'abc'"),
        ("'''a\nb'''", "'a\\nb'"),
        (r"'\x41\u00e9\'\d'", r"'Aé'\d'"),
        (r"r'\n'", r"'\n'"),
        ("f'{1 + 1}{\"x\"}{{}}'", "'2x{}'"),
        ("(1, 2) + [3]", "[1, 2, 3]"),
        ("[1] * 3", "[1, 1, 1]"),
        ("(1)", "1"),
        ("(1,)", "[1]"),
        ("1, 2", "[1, 2]"),
        ("[*[1], 2]", "[1, 2]"),
        ("dict(a=1, **dict(b=[2]))", "dict(a=1, b=[2])"),
        ("dict({'a': 1}, b=2)", "dict(a=1, b=2)"),
        ("{'a': {'b': None}, **{'c': 3}}", "dict(a=dict(b=None), c=3)"),
        ("{'a': [1, 2]}['a'][-1]", "2"),
        ("len(('a', 'b'))", "2"),
        ("int(8 / 3)", "2"),
        ("'{{ fileBasenameNoExtension }}.log'", "'a.log'"),
    ] {
        assert_eq!(value(&format!("x = {expression}\n"), "x"), expected, "{expression}");
    }
    assert_eq!(value("a = b = 1\nc: int = b + 1\nd, e = c, 'x'\nf = [d, e]\n", "f"), "[2, 'x']");
}

#[test]
fn changes_are_seen_wherever_a_value_is_used() {
    let text = "p = [dict(type='A')]\nd = dict(train=dict(p=p))\np[0]['type'] = 'B'\np += [1]\nd['train']['q'] = 2\n";
    assert_eq!(value(text, "d"), "dict(train=dict(p=[dict(type='B'), 1], q=2))");
}

#[test]
fn deleted_values_are_gone() {
    let text = "a = dict(b=1, c=2)\nd = 1\ne = 2\ndel a['b'], d\ndel (e)\n";
    assert_eq!(values(text), [("a".to_owned(), "dict(c=2)".to_owned())]);
    let base = evaluate(text, Path::new("a.py"), None).unwrap().variables;
    let of_base = |text: &str| evaluate(text, Path::new("a.py"), Some(&base));
    assert!(of_base("del _base_.a\n").unwrap().base.is_empty());
    let error = of_base("_base_.pop('a')\n").unwrap_err().to_string();
    assert!(
        error.contains("a.py:1:1: `_base_.pop('a')`, a function call, may change") && error.contains(".dump("),
        "{error}"
    );
}

#[test]
fn what_needs_python_is_unknown_and_so_is_what_it_may_change() {
    for (text, name, what) in [
        ("x = f()\n", "x", "a function call"),
        ("import os\nx = os.environ['A'] + 'b'\n", "x", "an import"),
        ("from a import b as c\nx = [c]\n", "x", "an import"),
        ("x = [i for i in range(3)]\n", "x", "a comprehension"),
        ("x = 1 if True else 2\n", "x", "a condition"),
        ("x = 1\nif x:\n    x = 2\n", "x", "a condition"),
        ("x = []\nfor i in (1, 2):\n    x.append(i)\n", "x", "a loop"),
        ("x = [1]\nx.append(2)\n", "x", "a function call"),
        ("p = [1]\nx = dict(p=p)\np.append(2)\n", "x", "a function call"),
        ("x = dict(a=dict(b=1))\ny = x['a']\ny.update(b=2)\n", "x", "a function call"),
        ("x = [0]\nx[0] = x\nf(x)\n", "x", "a function call"),
        ("x = dict()\ng(1, x)\n", "x", "a function call"),
        ("x = [1]\ndel x[0]\n", "x", "a deletion"),
        ("x = y\n", "x", "does not set"),
        ("x = dict(a=1)['b']\n", "x", "missing"),
        ("x = 1 / 0\n", "x", "without a known result"),
        ("x = '${fold}'\n", "x", "a tool fills in"),
        ("def dict(**a):\n    return 1\nx = dict(a=1)\n", "x", "a function call"),
    ] {
        let found = value(text, name);
        assert!(found.contains(what), "{text}: {found}");
    }
    let left_out =
        evaluate("a = [1]\n\n  # note\na.append(2)  # é\nprint(a)\n", Path::new("b.py"), None).unwrap().left_out;
    assert_eq!(left_out, ["b.py:4:1: `a.append(2)`, a function call"]);
}

#[test]
fn text_that_is_no_python_and_imported_bases_are_refused_with_their_place() {
    for (text, words) in [
        ("a = 1\nb = = 2\n", "a.py:2:"),
        ("model = dict(\n", "a.py:1:"),
        ("with read_base():\n    from .b import *\n", "a.py:1:1: this config imports its bases"),
        ("a = 'é", "not valid Python"),
    ] {
        let error = evaluate(text, Path::new("a.py"), None).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    assert!(bases("_base_ = [1]", Path::new("a.py")).unwrap_err().to_string().contains("a.py:1:11"));
}

#[test]
fn endless_values_are_cut() {
    let doubled: String = (0..60).map(|step| format!("a{} = [a{step}, a{step}]\n", step + 1)).collect();
    let text = format!("a0 = 1\n{doubled}");
    let variables = evaluate(&text, Path::new("a.py"), None).unwrap().variables;
    assert!(crate::value::check_size(&variables).is_err());
    let nested = format!("a = []\n{}", "a = [a]\n".repeat(5000));
    assert!(value(&nested, "a").contains("nested too deeply"));
    let chained = format!("a = [0]\n{}", "b = [0]\na[0] = b\na = b\n".repeat(500));
    assert!(!evaluate(&chained, Path::new("a.py"), None).unwrap().left_out.is_empty());
    let itself = evaluate("a = [0]\na[0] = a\n", Path::new("a.py"), None).unwrap();
    assert!(crate::value::check_size(&itself.variables).is_err());
    assert!(value("x = 'abc' * 10 ** 9\n", "x").contains("without a known result"));
    assert!(value(&format!("x = {}1{}\n", "(".repeat(500), ")".repeat(500)), "x").contains("nested too deeply"));
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,60}(\n\\PC{0,30}){0,3}") {
        let _ = evaluate(&text, Path::new("a.py"), None);
    }

    /// Pieces of configs in any order.
    #[test]
    fn no_sequence_of_tokens_panics(words in prop::collection::vec(prop::sample::select(&WORDS[..]), 0..40)) {
        let _ = evaluate(&words.join(""), Path::new("a.py"), None);
    }
}

const WORDS: [&str; 42] = [
    "a",
    "b",
    " = ",
    " += ",
    "[",
    "]",
    "(",
    ")",
    "{",
    "}",
    ", ",
    "\n",
    "dict(",
    "a=",
    "**",
    "*",
    "1",
    "-",
    "1.5e300",
    "'x'",
    "f'{a}'",
    "b'x'",
    ":",
    ".",
    "_base_",
    "{{_base_.a}}",
    "len(",
    "%",
    "//",
    "/",
    "if a:\n    ",
    "for a in b:\n  ",
    "import a",
    "lambda: ",
    "None",
    "True",
    "9223372036854775807",
    "\"",
    "\\",
    "é",
    "del a\n",
    " in ",
];
