//! Maps the values of a config to fnet's fields by the rows of [`TABLE`], and keeps a record of every field.

use std::collections::HashSet;

use indexmap::IndexMap;
use toml::Value as Toml;

use crate::path::{Found, find, type_of};
use crate::python::shortened;
use crate::table::{ALIASES, Convert, Rule, TABLE};
use crate::value::{Dict, Item, SourceLocation, Value};

/// A field that was carried over.
#[derive(Debug, Clone)]
pub struct Carried {
    /// The field in the config and its value.
    pub from: String,
    /// The field of fnet.
    pub to: String,
}

/// What became of the fields of a config.
#[derive(Debug, Default)]
pub struct Mapped {
    /// The values of fnet's fields, by their names. Names with `=` are no fields.
    pub values: IndexMap<String, Toml>,
    /// What was carried over.
    pub carried: Vec<Carried>,
    /// Fields without counterpart, each with what fnet does.
    pub without: Vec<String>,
    /// What the config does not say.
    pub assumed: Vec<String>,
    /// Fields whose values only Python knows.
    pub not_evaluated: Vec<String>,
    /// Variables that no field of MMDetection has the name of.
    pub variables: Vec<String>,
}

/// Maps the values of a config.
pub fn map(values: &Dict) -> Mapped {
    let mut mapper = Mapper { root: root(values), done: HashSet::new(), out: Mapped::default() };
    for (patterns, rule) in TABLE {
        patterns.split(' ').for_each(|pattern| mapper.apply(pattern, rule));
    }
    mapper.report_rest();
    mapper.out
}

/// Finds the first value that fits a pattern with aliases.
pub fn first(values: &Dict, pattern: &str) -> Option<Item> {
    let root = root(values);
    expanded(pattern).iter().find_map(|pattern| find(&root, pattern).into_iter().next()).map(|found| found.item)
}

/// The whole config.
fn root(values: &Dict) -> Found {
    let place = SourceLocation { file: "".into(), line: 0, column: 0 };
    Found { path: Vec::new(), shown: String::new(), item: Item { value: Value::dict(values.clone()), place } }
}

struct Mapper {
    root: Found,
    /// Paths of values that rows have taken.
    done: HashSet<Vec<String>>,
    out: Mapped,
}

/// A pattern for each place that its alias stands for.
fn expanded(pattern: &str) -> Vec<String> {
    let end = pattern.find(['.', '[']).unwrap_or(pattern.len());
    let (name, rest) = pattern.split_at(end);
    match ALIASES.iter().find(|(alias, _)| *alias == name) {
        Some((_, places)) => places.iter().map(|place| format!("{place}{rest}")).collect(),
        None => vec![pattern.to_owned()],
    }
}

/// Whether a field is there but says nothing.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::None | Value::Bool(false) => true,
        Value::Text(text) => text.is_empty(),
        Value::List(items) => items.borrow().is_empty(),
        Value::Dict(dict) => dict.borrow().is_empty(),
        _ => false,
    }
}

/// `field = value`, the value shortened.
fn assignment(found: &Found) -> String {
    let value = shortened(&found.item.value.to_string());
    // Its type is part of the name.
    match found.shown.ends_with(']') && matches!(found.item.value, Value::Dict(_)) {
        true => found.shown.clone(),
        false => format!("{} = {value}", found.shown),
    }
}

impl Mapper {
    fn find(&self, pattern: &str) -> Vec<Found> {
        expanded(pattern).iter().flat_map(|pattern| find(&self.root, pattern)).collect()
    }

    fn apply(&mut self, pattern: &str, rule: &Rule) {
        match rule {
            Rule::To(target, convert) => {
                for found in self.find(pattern) {
                    if !self.done.contains(&found.path) {
                        self.carry(&found, target, *convert);
                    }
                }
            }
            Rule::Missing(context, target, default) => self.assume(pattern, context, target, default),
            Rule::Always(expected, instead) => {
                for found in self.find(pattern) {
                    let value = &found.item.value;
                    let scoped = match value {
                        // `mmdet.FPN` is `FPN`.
                        Value::Text(text) => format!("'{}'", text.rsplit('.').next().unwrap_or(text)),
                        _ => value.to_string(),
                    };
                    if !matches!(value, Value::None) && !expected.contains(&scoped.as_str()) {
                        self.differs(&found, instead);
                    }
                    self.take(&found);
                }
            }
            Rule::As(other, instead) => {
                let others = self.find(other);
                for found in self.find(pattern) {
                    let same = |other: &Found| other.item.value.to_string() == found.item.value.to_string();
                    if !others.is_empty() && !others.iter().any(same) {
                        self.differs(&found, instead);
                    }
                    self.take(&found);
                }
            }
            Rule::No(instead) => self.find(pattern).iter().for_each(|found| self.without(found, instead)),
            Rule::Follows => self.find(pattern).iter().for_each(|found| self.take(found)),
        }
    }

    /// Marks a value and everything in it as taken.
    fn take(&mut self, found: &Found) {
        self.done.insert(found.path.clone());
        found.children().iter().for_each(|child| self.take(child));
    }

    fn carry(&mut self, found: &Found, target: &str, convert: Convert) {
        if matches!(found.item.value, Value::None) {
            return self.take(found);
        }
        if let Some(unknown) = unknown_in(found) {
            self.not_evaluated(&unknown);
            return self.take(found);
        }
        self.take(found);
        let from = assignment(found);
        let values = match convert(&found.item.value) {
            Ok(Toml::Table(fields)) => fields.into_iter().collect(),
            Ok(value) => vec![(target.to_owned(), value)],
            Err(expected) => {
                let place = &found.item.place;
                return self.out.without.push(format!("{from} ({place}): expected {expected}"));
            }
        };
        let is_one = values.len() == 1;
        for (to, value) in values {
            match self.out.values.get(&to) {
                None => {
                    self.out.values.insert(to.clone(), value);
                    self.out.carried.push(Carried { from: from.clone(), to });
                }
                Some(earlier) if is_one && *earlier != value && !to.starts_with('=') => {
                    self.out
                        .without
                        .push(format!("{from}: there is one {to}, which is {}", shortened(&earlier.to_string())));
                }
                Some(_) => {}
            }
        }
    }

    /// Takes MMDetection's default for a field that is missing.
    fn assume(&mut self, pattern: &str, context: &str, target: &str, default: &str) {
        let is_set = |found: &Found| !matches!(found.item.value, Value::None);
        let has = |pattern: &str| self.find(pattern).iter().any(is_set);
        if self.out.values.contains_key(target) || !has(context) || has(pattern) {
            return;
        }
        let Ok(table) = toml::from_str::<toml::Table>(&format!("value = {default}")) else { return };
        let Some(value) = table.get("value") else { return };
        self.out.values.insert(target.to_owned(), value.clone());
        let patterns = expanded(pattern);
        let context = self.find(context).first().map(|found| found.path.join(".")).unwrap_or_default();
        let start = context.split('.').next().unwrap_or_default();
        let named = patterns.iter().find(|pattern| pattern.starts_with(start)).unwrap_or(&patterns[0]);
        let named = named.split('&').next().unwrap_or(named);
        let closing = if named.contains('[') && !named.contains(']') { "]" } else { "" };
        self.out.assumed.push(format!("{target} = {default}, as the config has no {named}{closing}"));
    }

    fn not_evaluated(&mut self, found: &Found) {
        let text = format!("{}: {} is {}", found.item.place, found.shown, found.item.value.kind());
        if !self.out.not_evaluated.contains(&text) {
            self.out.not_evaluated.push(text);
        }
    }

    /// Reports what the rows above have left of a value.
    fn without(&mut self, found: &Found, instead: &str) {
        if self.is_left(found) {
            self.differs(found, instead);
            self.take(found);
        }
    }

    fn differs(&mut self, found: &Found, instead: &str) {
        match found.item.value {
            _ if self.done.contains(&found.path) => {}
            Value::Unknown(_) => self.not_evaluated(found),
            _ => self.out.without.push(format!("{}: {instead}", assignment(found))),
        }
    }

    /// Whether some of a value is neither taken nor unset. The type alone does not count where other fields are taken.
    fn is_left(&self, found: &Found) -> bool {
        if self.done.contains(&found.path) || is_unset(&found.item.value) {
            return false;
        }
        let children = found.children();
        if children.is_empty() {
            return true;
        }
        let is_type = |child: &Found| child.path.last().is_some_and(|key| key == "type" || key == "policy");
        let (types, others): (Vec<_>, Vec<_>) = children.into_iter().partition(is_type);
        let touched = others.iter().any(|child| self.is_touched(child));
        others.iter().any(|child| self.is_left(child)) || (!touched && types.iter().any(|child| self.is_left(child)))
    }

    fn is_touched(&self, found: &Found) -> bool {
        self.done.contains(&found.path) || found.children().iter().any(|child| self.is_touched(child))
    }

    /// Reports what no row has taken.
    fn report_rest(&mut self) {
        let patterns = TABLE.iter().flat_map(|(patterns, _)| patterns.split(' ')).flat_map(expanded);
        // Other variables only help to build these.
        let read: HashSet<String> =
            patterns.filter_map(|pattern| pattern.split(['.', '[']).next().map(str::to_owned)).collect();
        for found in self.root.children() {
            let name = found.path.first().cloned().unwrap_or_default();
            if read.contains(&name) {
                self.report_leaves(&found);
            } else if !self.done.contains(&found.path) {
                self.out.variables.push(name);
            }
        }
    }

    fn report_leaves(&mut self, found: &Found) {
        if !self.is_left(found) {
            return;
        }
        let children = found.children();
        if children.is_empty() || type_of(&found.item.value).is_some() && !self.is_touched(found) {
            return self.without(found, "no such field");
        }
        children.iter().for_each(|child| self.report_leaves(child));
    }
}

/// The first value in a value that only Python knows.
fn unknown_in(found: &Found) -> Option<Found> {
    match found.item.value {
        Value::Unknown(_) => Some(found.clone()),
        _ => found.children().iter().find_map(unknown_in),
    }
}
