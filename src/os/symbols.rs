//! Names of functions, for addresses in the files that this process has loaded.

use super::crash::Maps;
use super::image::Image;

/// The files that this process has loaded.
pub(crate) struct Symbols {
    maps: Box<Maps>,
    /// The main executable, if it is of another build than the addresses.
    other: Option<String>,
}

impl Symbols {
    /// Finds out what is loaded, to look up addresses of a process of this build of the program.
    pub(crate) fn new(build: u64) -> Self {
        let mut maps = Box::new(Maps::new());
        maps.read();
        let image = Image::main();
        let other = (image.fingerprint() != build).then(|| {
            let module = image.code_start().and_then(|start| maps.find(start));
            module.map_or_else(String::new, |module| {
                String::from_utf8_lossy(maps.name(module)).into_owned()
            })
        });
        Self { maps, other }
    }

    /// Returns the functions at this offset of a file, each with file and line if they are known:
    /// the innermost first, where functions were inlined. The offset is that of a return address,
    /// unless it `is_exact`. Returns none if this process has not loaded the file.
    pub(crate) fn of(
        &self,
        file: &str,
        offset: u64,
        is_exact: bool,
    ) -> Vec<(String, Option<(String, u32)>)> {
        let mut found = Vec::new();
        if self.other.as_deref() == Some(file) {
            return found;
        }
        let Some(base) = self.maps.base_of(file.as_bytes()) else {
            return found;
        };
        // The library takes return addresses, and looks up what comes before them.
        let address = base
            .wrapping_add(offset as usize)
            .wrapping_add(usize::from(is_exact));
        backtrace::resolve(std::ptr::without_provenance_mut(address), |symbol| {
            if let Some(name) = symbol.name() {
                let file = symbol.filename().map(|file| file.display().to_string());
                // The hash at the end of a name is left out.
                found.push((format!("{name:#}"), file.zip(symbol.lineno())));
            }
        });
        found
    }
}
