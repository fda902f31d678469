//! Finds the images of a root file system's layers. The snapshotter erofs of containerd 2.1 mounts them on the host and
//! returns an overlay of the mount points; from 2.2 on it returns the images themselves. Called by the flow of Create;
//! never opens an image.

use std::fs;
use std::path::Path;

use crate::mount::{MAX_LAYERS, Mount};

/// In the directory of a layer: its mount point, and beside it the image.
const MOUNT_POINT: &str = "fs";
const IMAGE: &str = "layer.erofs";

/// `mounts`, an overlay of mounted erofs images, as an overlay of the images, as containerd 2.2 returns it. None if
/// they are something else.
#[must_use]
pub fn images(mounts: &[Mount]) -> Option<Vec<Mount>> {
    let [overlay] = mounts else { return None };
    if overlay.kind != "overlay" {
        return None;
    }
    let layers = overlay
        .options
        .iter()
        .find_map(|option| option.strip_prefix("lowerdir="))?;
    let images = layers.split(':').map(|layer| image(Path::new(layer)));
    let mut found = images.collect::<Option<Vec<Mount>>>()?;
    if found.len() > MAX_LAYERS {
        return None;
    }
    let others = overlay
        .options
        .iter()
        .filter(|option| !option.starts_with("lowerdir="));
    let lower = format!("lowerdir={{{{ overlay 0 {} }}}}", found.len().saturating_sub(1));
    found.push(Mount {
        kind: "format/overlay".to_owned(),
        options: others.cloned().chain([lower]).collect(),
        ..overlay.clone()
    });
    Some(found)
}

/// The image that is mounted at `layer`.
fn image(layer: &Path) -> Option<Mount> {
    if layer.file_name()? != MOUNT_POINT {
        return None;
    }
    let image = layer.with_file_name(IMAGE);
    fs::symlink_metadata(&image).ok()?.is_file().then(|| Mount {
        kind: "erofs".to_owned(),
        source: image.display().to_string(),
        target: String::new(),
        options: vec!["ro".to_owned()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_with_images_beside_them_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let layer = |number: u32| directory.path().join(number.to_string());
        for number in 1..=3 {
            fs::create_dir_all(layer(number).join(MOUNT_POINT)).unwrap();
        }
        let overlay = |numbers: &[u32]| {
            let layers: Vec<String> = numbers
                .iter()
                .map(|number| layer(*number).join(MOUNT_POINT).display().to_string())
                .collect();
            vec![Mount {
                kind: "overlay".to_owned(),
                source: "overlay".to_owned(),
                target: String::new(),
                options: vec!["upperdir=/u".to_owned(), format!("lowerdir={}", layers.join(":"))],
            }]
        };
        for number in 1..=2 {
            fs::write(layer(number).join(IMAGE), "").unwrap();
        }
        let found = images(&overlay(&[2, 1])).unwrap();
        assert_eq!(found.len(), 3);
        assert_eq!(found[0].source, layer(2).join(IMAGE).display().to_string());
        assert_eq!(found[2].options, ["upperdir=/u", "lowerdir={{ overlay 0 1 }}"]);
        // An ordinary layer, and a directory of another name.
        assert_eq!(images(&overlay(&[3, 1])), None);
        fs::create_dir(layer(3).join(IMAGE)).unwrap();
        assert_eq!(images(&overlay(&[3])), None);
        assert_eq!(images(&[]), None);
    }
}
