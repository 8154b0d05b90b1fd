//! Finds values of a config by patterns: `model.neck.num_outs`, `data.train.pipeline[Resize].img_scale`.
//!
//! `[Type]` takes the dict of this type (or `policy`), or the first one in a list; a `*` at the end matches any rest, in any
//! case of letters. `[*]` takes all values of a dict or list, `[#]` all of a list. `&key=value` and `&key!=value` demand more. A step passes through what wraps a data set
//! (`RepeatDataset`) and through lists, to their first dict that has the key.

use crate::value::{Item, Value};

/// A value that was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its keys and indices.
    pub path: Vec<String>,
    /// Its path for people, with types in place of indices.
    pub shown: String,
    /// The value.
    pub item: Item,
}

impl Found {
    /// The value of a key or index.
    pub fn child(&self, key: &str, item: Item) -> Self {
        let mut path = self.path.clone();
        path.push(key.to_owned());
        let shown = match (key.parse::<usize>(), type_of(&item.value)) {
            (Ok(_), Some(kind)) => format!("{}[{kind}]", self.shown),
            (Ok(index), None) => format!("{}[{index}]", self.shown),
            _ if self.shown.is_empty() => key.to_owned(),
            _ => format!("{}.{key}", self.shown),
        };
        Self { path, shown, item }
    }

    /// The values of a dict or list.
    pub fn children(&self) -> Vec<Self> {
        match &self.item.value {
            Value::Dict(dict) => dict.borrow().iter().map(|(key, item)| self.child(key, item.clone())).collect(),
            Value::List(items) => {
                let items = items.borrow();
                items.iter().enumerate().map(|(index, item)| self.child(&index.to_string(), item.clone())).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The type of a dict without the name of its package.
pub fn type_of(value: &Value) -> Option<String> {
    let kind = value.get("type").or_else(|| value.get("policy"))?;
    let text = kind.value.as_text()?;
    Some(text.rsplit('.').next().unwrap_or(text).to_owned())
}

/// All values that fit a pattern. More than one only if it contains `[*]` or `[#]`.
pub fn find(root: &Found, pattern: &str) -> Vec<Found> {
    let mut found = vec![root.clone()];
    for step in steps(pattern) {
        let (key, selector) = match step.split_once('[') {
            Some((key, selector)) => (key, Some(selector.trim_end_matches(']'))),
            None => (step, None),
        };
        let of_key = found.iter().filter_map(|at| keyed(at, key));
        found = match selector {
            None => of_key.collect(),
            Some("#") => {
                of_key.filter(|at| matches!(at.item.value, Value::List(_))).flat_map(|at| at.children()).collect()
            }
            Some("*") => of_key.flat_map(|at| at.children()).collect(),
            Some(selector) => of_key.filter_map(|at| selected(&at, selector)).collect(),
        };
    }
    found
}

/// The parts of a pattern between dots outside brackets.
fn steps(pattern: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0;
    pattern.split(move |letter| {
        match letter {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        letter == '.' && depth == 0
    })
}

/// What a dict wraps: the data set of a `RepeatDataset` or those of a `ConcatDataset`; or the dicts of a list.
fn inner(at: &Found) -> Vec<Found> {
    match &at.item.value {
        Value::List(_) => {
            at.children().into_iter().filter(|child| matches!(child.item.value, Value::Dict(_))).collect()
        }
        value => ["dataset", "datasets"]
            .iter()
            .filter_map(|key| Some(at.child(key, value.get(key)?)))
            .filter(|child| matches!(child.item.value, Value::Dict(_) | Value::List(_)))
            .collect(),
    }
}

fn keyed(at: &Found, key: &str) -> Option<Found> {
    match at.item.value.get(key) {
        Some(item) => Some(at.child(key, item)),
        None => inner(at).iter().find_map(|inner| keyed(inner, key)),
    }
}

fn selected(at: &Found, selector: &str) -> Option<Found> {
    match at.item.value {
        Value::Dict(_) if is_selected(&at.item.value, selector) => Some(at.clone()),
        _ => inner(at).iter().find_map(|inner| selected(inner, selector)),
    }
}

fn is_selected(value: &Value, selector: &str) -> bool {
    let mut parts = selector.split('&');
    let kind = parts.next().unwrap_or_default();
    if !kind.is_empty() && !type_of(value).is_some_and(|of| fits(&of, kind)) {
        return false;
    }
    parts.all(|condition| {
        let (key, wanted, negated) = match condition.split_once("!=") {
            Some((key, wanted)) => (key, wanted, true),
            None => condition.split_once('=').map_or((condition, "", false), |(key, wanted)| (key, wanted, false)),
        };
        let item = key.split('.').try_fold(value.clone(), |value, key| value.get(key).map(|item| item.value));
        let holds = match item {
            Some(Value::Text(text)) => fits(&text, wanted),
            Some(value) => value.to_string() == wanted,
            None => false,
        };
        holds != negated
    })
}

fn fits(text: &str, wanted: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(start) => text.get(..start.len()).is_some_and(|text| text.eq_ignore_ascii_case(start)),
        None => text == wanted,
    }
}
