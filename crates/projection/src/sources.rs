//! The files that decide the content of a read model: their text, their hash, and a projection from such a text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::load::{DEFINITION, IGNORED, entries, file_name, handlers, read, tables};
use crate::{Fault, Order, Projection};

/// A file of a projection that decides the content of its read model.
pub(crate) struct Source {
    pub(crate) name: String,
    pub(crate) text: Result<String, Vec<Fault>>,
}

impl Projection {
    /// The same projection with other files in SQL, as [`Projection::files`] has them, and with other values of
    /// [`Projection::strict`] and [`Projection::order`]. Its name, categories, partitions and lanes stay.
    ///
    /// # Errors
    ///
    /// Every mistake in the files, such as a statement that this version does not accept any more.
    pub fn with_files(
        &self,
        files: &BTreeMap<String, String>,
        strict: bool,
        order: Option<Order>,
    ) -> Result<Self, Vec<Fault>> {
        let source = |(name, text): (&String, &String)| Source {
            name: name.clone(),
            text: Ok(text.clone()),
        };
        let sources: Vec<_> = files.iter().map(source).collect();
        let directory = Path::new(&self.name);
        let (tables, tables_hash) = tables(directory, &sources)?;
        let handlers = handlers(directory, &sources, &tables)?;
        let files = texts(&sources)?;
        let definition_hash = definition_hash(&files, strict, order);
        let found = Self { tables, tables_hash, definition_hash, files, handlers, ..self.clone() };
        Ok(Self { strict, order, is_rust: false, ..found })
    }
}

/// Reads the files that decide the content of the read model. Of `projection.toml`, only `strict = false`
/// and `order` count: its partitions and lanes do not affect the content, and its categories are compared separately.
pub(crate) fn sources(directory: &Path) -> Result<Vec<Source>, Fault> {
    let mut sources = Vec::new();
    for file in entries(directory)? {
        let name = file_name(&file);
        if name != IGNORED && name != DEFINITION {
            sources.push(Source { name, text: read(&file) });
        }
    }
    Ok(sources)
}

pub(crate) fn texts(sources: &[Source]) -> Result<Arc<BTreeMap<String, String>>, Vec<Fault>> {
    let text = |source: &Source| Ok((source.name.clone(), source.text.clone()?));
    sources.iter().map(text).collect::<Result<_, _>>().map(Arc::new)
}

pub(crate) fn definition_hash(
    files: &BTreeMap<String, String>,
    strict: bool,
    order: Option<Order>,
) -> String {
    let mut all = if strict { String::new() } else { "strict = false\n".to_owned() };
    if let Some(order) = order {
        writeln!(all, "order = {}", order.name()).expect("writing to a String cannot fail");
    }
    for (name, text) in files {
        writeln!(all, "{name}\n{text}").expect("writing to a String cannot fail");
    }
    hash(&all)
}

/// The first eight hexadecimal digits of the SHA-256 of a text.
pub fn short_hash(text: &str) -> String {
    hash(text).chars().take(8).collect()
}

pub(crate) fn hash(text: &str) -> String {
    Sha256::digest(text).iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("writing to a String cannot fail");
        hex
    })
}
