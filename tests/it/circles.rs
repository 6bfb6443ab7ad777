//! No file imports another that imports it in turn, by whatever way: each can be read without those above it.
//!
//! What a file takes from its own parents (`super::Error`) does not count: a folder's `mod.rs` is the folder.

use std::collections::{BTreeMap, BTreeSet};

use super::layers::{all, lines};

type Module = Vec<String>;

/// Returns the module of a file below `src`.
fn module(name: &str) -> Module {
    let path = name.strip_suffix(".rs").unwrap();
    let parts: Module = path.split('/').map(str::to_owned).collect();
    match parts.last().map(String::as_str) {
        Some("mod" | "lib" | "main") => parts[..parts.len() - 1].to_vec(),
        _ => parts,
    }
}

/// Returns the paths of a tree of imports, such as `a::{b, c::d as e}`.
fn expand(tree: &str, above: &str) -> Vec<String> {
    let Some((head, rest)) = tree.split_once('{') else {
        return vec![format!("{above}{}", tree.split(" as ").next().unwrap().trim())];
    };
    let inner = rest.rsplit_once('}').unwrap().0;
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for letter in inner.chars() {
        match letter {
            ',' if depth == 0 => parts.push(String::new()),
            _ => {
                depth += i32::from(letter == '{') - i32::from(letter == '}');
                parts.last_mut().unwrap().push(letter);
            }
        }
    }
    let above = format!("{above}{}", head.trim());
    parts.iter().filter(|part| !part.trim().is_empty()).flat_map(|part| expand(part.trim(), &above)).collect()
}

/// Returns the paths that begin with `crate`, `super` or `self` in a file's code, in imports and elsewhere.
fn paths(text: &str) -> Vec<String> {
    let (mut found, mut import) = (Vec::new(), None::<String>);
    for line in lines(text, "") {
        let begins = ["use ", "pub use "].iter().find_map(|word| line.trim_start().strip_prefix(word));
        match (&mut import, begins) {
            (Some(import), _) => import.push_str(line),
            (None, Some(tree)) => import = Some(tree.to_owned()),
            (None, None) => {
                let words = line.split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != ':');
                found.extend(words.map(str::to_owned));
            }
        }
        if let Some(tree) = import.take_if(|import| import.trim_end().ends_with(';')) {
            found.extend(expand(tree.trim_end().trim_end_matches(';'), ""));
        }
    }
    found.retain(|path| ["crate::", "super::", "self::"].iter().any(|begin| path.starts_with(begin)));
    found
}

/// Returns which file a path in the file of `own` leads to.
fn target(path: &str, own: &Module, files: &BTreeMap<Module, BTreeSet<Module>>) -> Module {
    let parts: Module = path.split("::").map(|part| part.trim().to_owned()).collect();
    let ups = parts.iter().take_while(|part| *part == "super").count();
    let (base, below) = match parts[0].as_str() {
        "crate" => (&own[..0], &parts[1..]),
        "self" => (&own[..], &parts[1..]),
        _ => (&own[..own.len().saturating_sub(ups)], &parts[ups..]),
    };
    let mut full = [base, below].concat();
    while !full.is_empty() && !files.contains_key(&full) {
        full.pop();
    }
    full
}

fn graph() -> BTreeMap<Module, BTreeSet<Module>> {
    let files = all().into_iter().filter(|(name, _)| name.ends_with(".rs"));
    let texts: BTreeMap<Module, String> = files.map(|(name, text)| (module(&name), text)).collect();
    let empty = texts.keys().map(|own| (own.clone(), BTreeSet::new())).collect();
    let edges = |own: &Module, text: &str| {
        let targets = paths(text).into_iter().map(|path| target(&path, own, &empty));
        targets.filter(|target| !own.starts_with(target)).collect::<BTreeSet<_>>()
    };
    texts.iter().map(|(own, text)| (own.clone(), edges(own, text))).collect()
}

/// Returns a way from a file back to itself, if there is one.
fn circle(from: &Module, graph: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut came: BTreeMap<&Module, &Module> = BTreeMap::new();
    let mut next = vec![from];
    while let Some(at) = next.pop() {
        for to in &graph[at] {
            if to == from {
                let mut way = vec![from.clone(), at.clone()];
                while let Some(before) = came.get(way.last().unwrap()) {
                    way.push((*before).clone());
                }
                return Some(way);
            }
            if !came.contains_key(to) {
                came.insert(to, at);
                next.push(to);
            }
        }
    }
    None
}

#[test]
fn no_file_imports_itself_by_way_of_others() {
    let graph = graph();
    // It sees something.
    let instance = ["plumbing", "instance", "start"].map(str::to_owned).to_vec();
    assert!(graph[&instance].contains(["plumbing", "instance", "settle"].map(str::to_owned).as_slice()));
    for file in graph.keys() {
        if let Some(way) = circle(file, &graph) {
            let way: Vec<String> = way.iter().map(|module| module.join("/")).collect();
            panic!("a circle of imports: {}", way.join(" <- "));
        }
    }
}
