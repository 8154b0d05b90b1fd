//! An untyped config: a tree of TOML values with their origins.

use std::fmt;
use std::sync::Arc;

use indexmap::IndexMap;
use toml_edit::{Document, Item, TableLike, Value as Parsed};

use crate::Result;
use fnet_protocol::message::Failure;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    Default,
    /// A config file, or the config inside a checkpoint.
    File {
        /// Its path as the user gave it.
        file: Arc<str>,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// An environment variable.
    Environment(&'static str),
    /// An override from the command line, as typed.
    Set(Arc<str>),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line, .. } => write!(f, "{file}:{line}"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Set(text) => write!(f, "--set {text}"),
        }
    }
}

impl Origin {
    /// The position with its column, as compilers print it.
    pub(super) fn exact(&self) -> String {
        match self {
            Self::File { file, line, column } => format!("{file}:{line}:{column}"),
            other => other.to_string(),
        }
    }
}

/// A value and the position of its key.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub value: Value,
    pub origin: Origin,
}

/// A table or a leaf. Arrays are leaves because they are replaced as a whole.
#[derive(Debug, Clone)]
pub(super) enum Value {
    Table(Table),
    Leaf(toml::Value),
}

pub(super) type Table = IndexMap<String, Node>;

/// Inserts a value at a dotted path and creates missing tables.
pub(super) fn insert(table: &mut Table, path: &str, value: Value, origin: &Origin) {
    match path.split_once('.') {
        None => drop(table.insert(path.to_owned(), Node { value, origin: origin.clone() })),
        Some((head, rest)) => {
            let fresh = || Node { value: Value::Table(Table::new()), origin: origin.clone() };
            let node = table.entry(head.to_owned()).or_insert_with(fresh);
            if !matches!(node.value, Value::Table(_)) {
                node.value = Value::Table(Table::new());
            }
            if let Value::Table(inner) = &mut node.value {
                insert(inner, rest, value, origin);
            }
        }
    }
}

/// The value at a dotted path.
pub(super) fn find<'t>(table: &'t Table, path: &str) -> Option<(&'t toml::Value, &'t Origin)> {
    let (head, rest) = path.split_once('.').map_or((path, None), |(head, rest)| (head, Some(rest)));
    let Node { value, origin } = table.get(head)?;
    match (value, rest) {
        (Value::Leaf(leaf), None) => Some((leaf, origin)),
        (Value::Table(inner), Some(rest)) => find(inner, rest),
        _ => None,
    }
}

/// Parses a TOML document. Errors and origins refer to it as `file`.
pub(super) fn parse(text: &str, file: &str) -> Result<Table> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let document = Document::parse(text).map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        Failure::usage(format!("{file}:{line}:{column}: not valid TOML: {}", error.message().trim_end()))
    })?;
    let file: Arc<str> = file.into();
    let place = |offset: Option<usize>| {
        let (line, column) = position(text, offset.unwrap_or(0));
        Origin::File { file: file.clone(), line, column }
    };
    table(document.as_table(), &place)
}

fn table(source: &dyn TableLike, place: &dyn Fn(Option<usize>) -> Origin) -> Result<Table> {
    let mut out = Table::new();
    for (name, item) in source.iter() {
        let key = source.key(name);
        let offset = key.and_then(toml_edit::Key::span).or_else(|| item.span()).map(|span| span.start);
        let origin = place(offset);
        let value = match item.as_table_like() {
            Some(inner) => Value::Table(table(inner, place)?),
            None => Value::Leaf(leaf(item, &origin)?),
        };
        out.insert(name.to_owned(), Node { value, origin });
    }
    Ok(out)
}

fn leaf(item: &Item, origin: &Origin) -> Result<toml::Value> {
    let value = match item {
        Item::ArrayOfTables(tables) => {
            tables.iter().map(|table| scalars(table)).collect::<Option<_>>().map(toml::Value::Array)
        }
        item => item.as_value().and_then(scalar),
    };
    value.ok_or_else(|| {
        Failure::usage(format!(
            "{}: a date or a time is not allowed in a config; expected numbers, strings, booleans, lists of these, or tables",
            origin.exact()
        ))
    })
}

fn scalar(value: &Parsed) -> Option<toml::Value> {
    Some(match value {
        Parsed::String(text) => toml::Value::String(text.value().clone()),
        Parsed::Integer(number) => toml::Value::Integer(*number.value()),
        Parsed::Float(number) => toml::Value::Float(*number.value()),
        Parsed::Boolean(flag) => toml::Value::Boolean(*flag.value()),
        Parsed::Array(items) => toml::Value::Array(items.iter().map(scalar).collect::<Option<_>>()?),
        Parsed::InlineTable(entries) => scalars(entries)?,
        Parsed::Datetime(_) => return None,
    })
}

/// A table inside a list.
fn scalars(entries: &dyn TableLike) -> Option<toml::Value> {
    let value = |item: &Item| match item.as_table_like() {
        Some(inner) => scalars(inner),
        None => item.as_value().and_then(scalar),
    };
    entries
        .iter()
        .map(|(name, item)| Some((name.to_owned(), value(item)?)))
        .collect::<Option<_>>()
        .map(toml::Value::Table)
}

/// Line and column (in characters), both from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// The tree of a table in which every value has the origin `origin`.
pub(super) fn from_value(table: toml::Table, origin: &Origin) -> Table {
    let node = |value| match value {
        toml::Value::Table(inner) => Value::Table(from_value(inner, origin)),
        other => Value::Leaf(other),
    };
    table.into_iter().map(|(name, value)| (name, Node { value: node(value), origin: origin.clone() })).collect()
}

/// Merges `over` into `under`: tables are merged recursively, everything else is replaced.
pub(super) fn merge(under: &mut Table, over: Table) {
    for (name, node) in over {
        match (under.get_mut(&name), node) {
            (Some(Node { value: Value::Table(below), origin }), Node { value: Value::Table(above), origin: newer }) => {
                merge(below, above);
                *origin = newer;
            }
            (_, node) => {
                under.insert(name, node);
            }
        }
    }
}

/// The plain TOML table of a tree.
pub(super) fn to_value(table: &Table) -> toml::Table {
    let value = |node: &Node| match &node.value {
        Value::Table(inner) => toml::Value::Table(to_value(inner)),
        Value::Leaf(leaf) => leaf.clone(),
    };
    table.iter().map(|(name, node)| (name.clone(), value(node))).collect()
}

/// Calls `visit` with the dotted path and node of every leaf.
pub(super) fn each_leaf(table: &Table, prefix: &str, visit: &mut dyn FnMut(&str, &toml::Value, &Origin)) {
    for (name, node) in table {
        let path = join(prefix, name);
        match &node.value {
            Value::Table(inner) => each_leaf(inner, &path, visit),
            Value::Leaf(leaf) => visit(&path, leaf, &node.origin),
        }
    }
}

/// `prefix.name`, or `name` at the top.
pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_have_a_line_and_a_column() {
        let tree = parse("# note\n[optimizer]\nlr = 1e-3 # é\n  \"é\" = 1\n", "a.toml").unwrap();
        let Value::Table(optimizer) = &tree["optimizer"].value else { panic!("not a table") };
        assert_eq!(optimizer["lr"].origin.exact(), "a.toml:3:1");
        assert_eq!(optimizer["é"].origin.exact(), "a.toml:4:3");
    }

    #[test]
    fn a_syntax_error_names_file_line_and_column() {
        let error = parse("a = 1\nb = = 2\n", "broken.toml").unwrap_err().to_string();
        assert!(error.starts_with("broken.toml:2:"), "{error}");
    }

    #[test]
    fn tables_merge_at_every_depth_and_lists_are_replaced() {
        let mut under = parse("[a.b]\nx = [1, 2]\ny = 1\n", "under").unwrap();
        merge(&mut under, parse("a.b.x = [3]\na.c = true\n", "over").unwrap());
        let expected: toml::Table = toml::from_str("[a]\nc = true\n[a.b]\nx = [3]\ny = 1\n").unwrap();
        assert_eq!(to_value(&under), expected);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,80}(\n\\PC{0,20})?") {
            let _ = parse(&text, "any.toml");
        }
    }
}
