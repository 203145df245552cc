//! No import cycles: no file uses names from a file that, directly or not, uses its own.
//!
//! An import is a path, in `use` or elsewhere, to an item in another file of the same target. A path through a re-export leads to the file
//! that defines the item. Method calls do not count, because resolving them needs types. Declaring a module is not an import;
//! re-exporting from it is.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod modules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use oq_tests::{packages, repository, rust_sources};
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

use modules::{ModuleId, Modules, Sources, attributes, each_use, is_for_tests};

/// For each file, the files that it imports from, with the paths that do.
type Arrows = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

fn arrows_of(root: &Path, sources: &Sources) -> Arrows {
    let modules = Modules::read(root, sources);
    let mut arrows = Arrows::new();
    for (module, read) in modules.0.iter().enumerate() {
        let mut reader = Reader { modules: &modules, module, arrows: &mut arrows };
        // Submodules are read separately.
        let own = read.items.iter().filter(|item| !matches!(item, syn::Item::Mod(_)));
        own.for_each(|item| reader.visit_item(item));
    }
    arrows
}

/// Reads the items of one module.
struct Reader<'a> {
    modules: &'a Modules,
    module: ModuleId,
    arrows: &'a mut Arrows,
}

impl Reader<'_> {
    /// A path outside of `use`. If it begins with an item, that was imported with `use` or is defined in this module.
    fn mention(&mut self, path: &[String]) {
        if path.len() > 1 && self.modules.file_named(self.module, &path[..1]).is_none() {
            self.take(path);
        }
    }

    fn take(&mut self, path: &[String]) {
        if let Some(file) = self.modules.file_named(self.module, path) {
            self.arrow(file.to_owned(), path);
        }
    }

    fn arrow(&mut self, to: PathBuf, path: &[String]) {
        let from = &self.modules.0[self.module].file;
        if *from != to {
            self.arrows.entry(from.clone()).or_default().entry(to).or_default().insert(path.join("::"));
        }
    }

    /// Paths in the arguments of a macro, which are not parsed: names separated by `::`.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(ident) if colons == 2 && !path.is_empty() => {
                    path.push(ident.to_string());
                    colons = 0;
                }
                token => {
                    self.mention(&std::mem::take(&mut path));
                    colons = 0;
                    match token {
                        TokenTree::Ident(ident) => path.push(ident.to_string()),
                        TokenTree::Group(group) => self.tokens(group.stream()),
                        _ => {}
                    }
                }
            }
        }
        self.mention(&path);
    }
}

impl Visit<'_> for Reader<'_> {
    fn visit_item(&mut self, item: &syn::Item) {
        if !is_for_tests(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &syn::ImplItemFn) {
        if !is_for_tests(&item.attrs) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        each_use(&mut Vec::new(), &item.tree, &mut |path, name| match name {
            Some(_) => self.take(path),
            None => {
                let files: Vec<PathBuf> =
                    self.modules.files_below(self.module, path).into_iter().map(Path::to_owned).collect();
                files.into_iter().for_each(|file| self.arrow(file, &[path, &["*".to_owned()]].concat()));
            }
        });
    }

    fn visit_path(&mut self, path: &syn::Path) {
        if path.leading_colon.is_none() {
            let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.mention(&names);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, used: &syn::Macro) {
        self.tokens(used.tokens.clone());
        visit::visit_macro(self, used);
    }

    fn visit_attribute(&mut self, _: &syn::Attribute) {}
}

/// Sets of files that are mutually reachable (strongly connected components).
fn circles(arrows: &Arrows) -> BTreeSet<BTreeSet<&Path>> {
    let reached = |from: &Path| {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(file) = open.pop() {
            for to in arrows.get(file).into_iter().flat_map(BTreeMap::keys) {
                if reached.insert(to.as_path()) {
                    open.push(to);
                }
            }
        }
        reached
    };
    let all: BTreeMap<&Path, BTreeSet<&Path>> = arrows.keys().map(|file| (file.as_path(), reached(file))).collect();
    // A file that reaches itself is in a cycle with all files that it reaches and that reach it.
    let in_circles = all.iter().filter(|(file, reached)| reached.contains(*file));
    in_circles
        .map(|(file, reached)| {
            reached.iter().copied().filter(|to| all.get(to).is_some_and(|back| back.contains(file))).collect()
        })
        .collect()
}

/// A description of the cycles and their imports; empty if there are none.
fn told(arrows: &Arrows) -> String {
    let mut text = String::new();
    for circle in circles(arrows) {
        text.push_str(&format!("a circle of {} files:\n", circle.len()));
        for (from, to, names) in
            circle.iter().flat_map(|from| arrows[*from].iter().map(move |(to, names)| (from, to, names)))
        {
            if circle.contains(to.as_path()) {
                let names: Vec<&str> = names.iter().map(String::as_str).collect();
                text.push_str(&format!("  {} -> {}: {}\n", from.display(), to.display(), names.join(", ")));
            }
        }
    }
    text
}

#[test]
fn no_target_has_a_circle_of_files() {
    let mut found = String::new();
    let mut arrows = 0;
    for package in packages() {
        let manifest = Path::new(package["manifest_path"].as_str().expect("a path"));
        let sources = rust_sources(manifest.parent().expect("a manifest lies in a folder"));
        let targets = package["targets"].as_array().expect("a list of targets");
        // A build script may include a file of another package.
        let targets = targets.iter().filter(|target| target["kind"][0] != "custom-build");
        for target in targets {
            let root = Path::new(target["src_path"].as_str().expect("a path"));
            let of_target = arrows_of(root.strip_prefix(repository()).expect("it lies there"), &sources);
            arrows += of_target.values().map(BTreeMap::len).sum::<usize>();
            found.push_str(&told(&of_target));
        }
    }
    assert!(arrows > 100, "only {arrows} arrows: are the files read?");
    assert!(found.is_empty(), "{found}");
}

#[track_caller]
fn check(files: &[(&str, &str)], circles: &str) {
    let sources: Sources = files.iter().map(|(name, text)| (PathBuf::from(name), (*text).to_owned())).collect();
    assert_eq!(told(&arrows_of(Path::new("lib.rs"), &sources)), circles);
}

const NONE: &str = "";
const A_AND_B: &str = "a circle of 2 files:\n  a.rs -> b.rs: crate::b::g\n  b.rs -> a.rs: crate::a::f\n";

#[test]
fn a_circle_is_found() {
    let lib = "mod a; mod b;";
    check(&[("lib.rs", lib), ("a.rs", "pub fn f() {}"), ("b.rs", "use crate::a::f;")], NONE);
    check(&[("lib.rs", lib), ("a.rs", "use crate::b::g; fn f() {}"), ("b.rs", "use crate::a::f; fn g() {}")], A_AND_B);
    // Without `use`: in a signature and in a macro's arguments.
    let a = "fn f(x: crate::b::g) {}";
    let b = "struct g; fn h() { println!(\"{}\", [crate::a::f(1)]) }";
    check(&[("lib.rs", lib), ("a.rs", a), ("b.rs", b)], A_AND_B);
}

#[test]
fn a_circle_may_be_longer_and_lie_in_folders() {
    check(
        &[
            ("lib.rs", "mod a; mod c;"),
            ("a/mod.rs", "mod b; use self::b::{f, g as h}; pub struct A;"),
            ("a/b.rs", "use crate::c; pub fn f() { c::k() } pub fn g() {}"),
            ("c.rs", "mod inner { pub fn k() { super::super::a::A; } } pub use inner::*;"),
        ],
        "a circle of 3 files:\n  a/b.rs -> c.rs: c::k\n  a/mod.rs -> a/b.rs: self::b::f, self::b::g\n  \
         c.rs -> a/mod.rs: super::super::a::A\n",
    );
}

#[test]
fn a_parent_from_which_a_child_imports_is_in_a_circle() {
    let a = "mod b; pub use b::B; pub struct A;";
    check(
        &[("lib.rs", "mod a;"), ("a.rs", a), ("a/b.rs", "use super::A; pub struct B(A);")],
        "a circle of 2 files:\n  a/b.rs -> a.rs: super::A\n  a.rs -> a/b.rs: b::B\n",
    );
    let all = "use super::*; pub struct B(A);";
    check(
        &[("lib.rs", "mod a;"), ("a.rs", a), ("a/b.rs", all)],
        "a circle of 2 files:\n  a/b.rs -> a.rs: super::*\n  a.rs -> a/b.rs: b::B\n",
    );
    // A module's file may be elsewhere.
    let a = "#[path = \"../b.rs\"] mod b; pub use b::B; pub struct A;";
    check(
        &[("lib.rs", "#[path = \"sub/a.rs\"] mod a;"), ("sub/a.rs", a), ("b.rs", "use super::A; pub struct B(A);")],
        "a circle of 2 files:\n  b.rs -> sub/a.rs: super::A\n  sub/a.rs -> b.rs: b::B\n",
    );
    // Declaring a module is not an import.
    check(&[("lib.rs", "mod a; pub struct A;"), ("a.rs", "use crate::A;")], NONE);
}

#[test]
fn a_re_export_is_followed() {
    let lib = "mod a; mod b; pub use a::f; pub use b::{g, h as renamed};";
    check(&[("lib.rs", lib), ("a.rs", "pub fn f() {}"), ("b.rs", "use crate::f; pub fn g() {} pub fn h() {}")], NONE);
    check(
        &[
            ("lib.rs", lib),
            ("a.rs", "use crate::renamed; pub fn f() {}"),
            ("b.rs", "use crate::f; pub fn g() {} pub fn h() {}"),
        ],
        "a circle of 2 files:\n  a.rs -> b.rs: crate::renamed\n  b.rs -> a.rs: crate::f\n",
    );
    // A module that contains a function of the same name.
    let lib = "mod f; mod b; pub use f::f;";
    check(&[("lib.rs", lib), ("f.rs", "use crate::b::B; pub fn f() {}"), ("b.rs", "pub struct B;")], NONE);
}

#[test]
fn tests_and_other_crates_are_ignored() {
    let lib = "mod a; mod b;";
    let a = "use std::fmt; use b_crate::b; pub fn f() {} #[cfg(test)] mod tests { use crate::b::g; }";
    check(&[("lib.rs", lib), ("a.rs", a), ("b.rs", "use crate::a::f; pub fn g() {}")], NONE);
    let a = "pub fn f() {} #[cfg(test)] mod tests; #[cfg(test)] use crate::b::g;";
    check(&[("lib.rs", lib), ("a.rs", a), ("b.rs", "use crate::a::f; pub fn g() {}")], NONE);
    let a = "pub fn f() {} struct A; impl A { #[cfg(test)] fn t() { crate::b::g() } }";
    check(&[("lib.rs", lib), ("a.rs", a), ("b.rs", "use crate::a::f; pub fn g() {}")], NONE);
    // Code that is not only for tests counts.
    let a = "pub fn f() {} #[cfg(not(test))] use crate::b::g;";
    check(&[("lib.rs", lib), ("a.rs", a), ("b.rs", "use crate::a::f; pub fn g() {}")], A_AND_B);
}
