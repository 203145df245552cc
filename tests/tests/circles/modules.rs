//! The modules of one target (a library, a program, a test), with the names of each and the file that defines a name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use syn::{Attribute, Item, UseTree};

/// Rust files by path, with their text.
pub type Sources = BTreeMap<PathBuf, String>;

/// Number of a module in [`Modules`]; the root is 0.
pub type ModuleId = usize;

/// The meaning of a name in a module.
enum Meaning {
    /// An item that is defined here.
    Item,
    /// A submodule.
    Module(ModuleId),
    /// A name imported with `use`, as a path from this module.
    Use(Vec<String>),
}

pub struct Module {
    pub file: PathBuf,
    pub items: Vec<Item>,
    parent: Option<ModuleId>,
    names: BTreeMap<String, Vec<Meaning>>,
    /// Paths of `use path::*`.
    globs: Vec<Vec<String>>,
}

pub struct Modules(pub Vec<Module>);

/// What a path resolves to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Module(ModuleId),
    /// An item of this module, or a part of it, such as a variant or method.
    Item(ModuleId),
}

impl Modules {
    /// The modules of the target with root file `root`, without those that are only for tests.
    pub fn read(root: &Path, sources: &Sources) -> Self {
        let mut modules = Self(Vec::new());
        let folder = root.parent().expect("a file lies in a folder").to_owned();
        modules.add(None, root.to_owned(), folder, parse(root, sources), sources);
        modules
    }

    fn add(
        &mut self,
        parent: Option<ModuleId>,
        file: PathBuf,
        folder: PathBuf,
        items: Vec<Item>,
        sources: &Sources,
    ) -> ModuleId {
        let id = self.0.len();
        let (names, globs) = (BTreeMap::new(), Vec::new());
        self.0.push(Module { file: file.clone(), items: Vec::new(), parent, names, globs });
        for item in &items {
            if is_for_tests(attributes(item)) {
                continue;
            }
            match item {
                Item::Mod(module) => {
                    let name = module.ident.to_string();
                    let below = folder.join(&name);
                    let child = match &module.content {
                        Some((_, items)) => self.add(Some(id), file.clone(), below, items.clone(), sources),
                        None => {
                            let path = file_of(module, &file, &folder, sources);
                            let is_folder = path.file_name().is_some_and(|name| name == "mod.rs");
                            let below =
                                if is_folder { path.parent().map(Path::to_owned) } else { None }.unwrap_or(below);
                            let items = parse(&path, sources);
                            self.add(Some(id), path, below, items, sources)
                        }
                    };
                    self.name(id, name, Meaning::Module(child));
                }
                Item::Use(item) => self.bind(id, &mut Vec::new(), &item.tree),
                item => defined(item).into_iter().for_each(|name| self.name(id, name, Meaning::Item)),
            }
        }
        self.0[id].items = items;
        id
    }

    fn name(&mut self, id: ModuleId, name: String, meaning: Meaning) {
        self.0[id].names.entry(name).or_default().push(meaning);
    }

    fn bind(&mut self, id: ModuleId, path: &mut Vec<String>, tree: &UseTree) {
        each_use(path, tree, &mut |path, name| match name {
            Some(name) => self.name(id, name.to_owned(), Meaning::Use(path.to_vec())),
            None => self.0[id].globs.push(path.to_vec()),
        });
    }

    /// The file that defines the item at `path`, as seen from `from`. `None` for a module, a local name, or an item of another crate.
    pub fn file_named(&self, from: ModuleId, path: &[String]) -> Option<&Path> {
        let mut seen = BTreeSet::new();
        match self.resolve(from, path, &mut seen)? {
            Place::Item(module) => Some(&self.0[module].file),
            Place::Module(_) => None,
        }
    }

    /// The files that define the names imported by `use path::*`.
    pub fn files_below(&self, from: ModuleId, path: &[String]) -> BTreeSet<&Path> {
        let mut files = BTreeSet::new();
        match self.resolve(from, path, &mut BTreeSet::new()) {
            None => {}
            Some(Place::Item(module)) => drop(files.insert(self.0[module].file.as_path())),
            Some(Place::Module(module)) => {
                let names = self.0[module].names.keys();
                files.extend(names.filter_map(|name| self.file_named(module, std::slice::from_ref(name))));
            }
        }
        files
    }

    fn resolve(&self, from: ModuleId, path: &[String], seen: &mut BTreeSet<(ModuleId, Vec<String>)>) -> Option<Place> {
        // Names may refer to each other, as in `use self::a as b; use self::b as a`.
        if !seen.insert((from, path.to_vec())) {
            return None;
        }
        let (first, rest) = path.split_first()?;
        let start = match first.as_str() {
            "crate" => Place::Module(0),
            "self" => Place::Module(from),
            "super" => Place::Module(self.0[from].parent?),
            name => self.look_up(from, name, rest.is_empty(), seen)?,
        };
        match start {
            Place::Module(module) if !rest.is_empty() => {
                if ["self", "super"].contains(&rest[0].as_str()) {
                    return self.resolve(module, rest, seen);
                }
                let next = self.look_up(module, &rest[0], rest.len() == 1, seen)?;
                match next {
                    Place::Module(module) if rest.len() > 1 => {
                        let mut path = vec!["self".to_owned()];
                        path.extend_from_slice(&rest[1..]);
                        self.resolve(module, &path, seen)
                    }
                    place => Some(place),
                }
            }
            place => Some(place),
        }
    }

    /// The meaning of `name` in a module. A module and a function may have the same name; `is_last` prefers the function.
    fn look_up(
        &self,
        module: ModuleId,
        name: &str,
        is_last: bool,
        seen: &mut BTreeSet<(ModuleId, Vec<String>)>,
    ) -> Option<Place> {
        let meanings = self.0[module].names.get(name).into_iter().flatten();
        let mut places: Vec<Place> = meanings
            .filter_map(|meaning| match meaning {
                Meaning::Item => Some(Place::Item(module)),
                Meaning::Module(child) => Some(Place::Module(*child)),
                Meaning::Use(path) => self.resolve(module, path, seen),
            })
            .collect();
        if places.is_empty() {
            let globs = self.0[module].globs.iter();
            let within = |path: &Vec<String>| [path.as_slice(), &[name.to_owned()]].concat();
            places.extend(globs.filter_map(|path| self.resolve(module, &within(path), seen)));
        }
        places.sort_by_key(|place| matches!(place, Place::Module(_)) == is_last);
        places.first().copied()
    }
}

/// Whether the item with these attributes is only for tests.
pub fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let condition = attribute.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default();
        condition == "test" || condition.starts_with("all (test") || condition.starts_with("all(test")
    })
}

pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::TraitAlias(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// The name that an item adds to its module.
fn defined(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

/// Calls back with each path of a `use` and the name that it imports; no name for `*`.
pub fn each_use(path: &mut Vec<String>, tree: &UseTree, tell: &mut dyn FnMut(&[String], Option<&str>)) {
    match tree {
        UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            each_use(path, &tree.tree, tell);
            path.pop();
        }
        UseTree::Group(tree) => tree.items.iter().for_each(|tree| each_use(path, tree, tell)),
        UseTree::Glob(_) => tell(path, None),
        UseTree::Name(tree) => tell_one(path, tree.ident.to_string(), None, tell),
        UseTree::Rename(tree) => tell_one(path, tree.ident.to_string(), Some(tree.rename.to_string()), tell),
    }
}

fn tell_one(
    path: &mut Vec<String>,
    name: String,
    rename: Option<String>,
    tell: &mut dyn FnMut(&[String], Option<&str>),
) {
    // `use a::b::{self}` imports the module `b`.
    if name == "self" && !path.is_empty() {
        let name = rename.or_else(|| path.last().cloned());
        return tell(path, name.as_deref());
    }
    path.push(name);
    let name = rename.or_else(|| path.last().cloned());
    tell(path, name.as_deref());
    path.pop();
}

fn parse(file: &Path, sources: &Sources) -> Vec<Item> {
    let text = sources.get(file).unwrap_or_else(|| panic!("{} is not there", file.display()));
    syn::parse_file(text).unwrap_or_else(|e| panic!("{}: {e}", file.display())).items
}

/// The file of `mod name;`.
fn file_of(module: &syn::ItemMod, file: &Path, folder: &Path, sources: &Sources) -> PathBuf {
    let named = module.attrs.iter().find(|attribute| attribute.path().is_ident("path"));
    if let Some(attribute) = named {
        let syn::Meta::NameValue(pair) = &attribute.meta else { panic!("{}: a path is a value", file.display()) };
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) = &pair.value else {
            panic!("{}: a path is a text", file.display())
        };
        let mut found = file.parent().expect("a file lies in a folder").to_owned();
        for part in Path::new(&path.value()).components() {
            match part {
                Component::ParentDir => drop(found.pop()),
                part => found.push(part),
            }
        }
        return found;
    }
    let name = module.ident.to_string();
    let single = folder.join(format!("{name}.rs"));
    if sources.contains_key(&single) { single } else { folder.join(name).join("mod.rs") }
}
