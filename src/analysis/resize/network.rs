//! Whether a whole network runs in which parts run at another size, with everything else that is edited in it.

use rustc_hash::FxHashMap;

use crate::{
    analysis::{
        Analysis,
        shapes::Edited,
        skip::{Illegal, Redirect},
        splice::Splice,
    },
    ir::{Attribute, NodeId},
};

impl Analysis<'_> {
    /// Proves that the network runs with all of these edits, and that its outputs have the shapes that they had. Returns
    /// the sizes at which it does, if not at all.
    ///
    /// # Errors
    /// [`Illegal`] with the first node that is not proven to run.
    pub fn runs_with<'e>(
        &self,
        redirects: impl Iterator<Item = Redirect>,
        splices: impl Iterator<Item = &'e Splice>,
        attributes: impl Iterator<Item = (NodeId, &'e [Attribute])>,
    ) -> Result<Option<String>, Illegal> {
        let mut edited = Edited::new(self.graph, &self.shapes);
        redirects.for_each(|redirect| edited.redirect(redirect.from, redirect.to));
        let attributes: FxHashMap<NodeId, &[Attribute]> = attributes.collect();
        let mut waiting: FxHashMap<NodeId, Vec<&Splice>> = FxHashMap::default();
        for splice in splices {
            if let Some(first) = splice.first_reader() {
                waiting.entry(first).or_default().push(splice);
            }
        }
        for id in self.graph.node_ids() {
            let because = |reason: String| Illegal::at(self.graph, id, &reason);
            for splice in waiting.remove(&id).unwrap_or_default() {
                if !splice.resizes() && edited.keep(&splice.at, &splice.template) {
                    continue;
                }
                edited.splice(&splice.at, &splice.template).map_err(because)?;
            }
            let set = attributes.get(&id).copied();
            if set.is_some() || edited.reads_changed(id) {
                edited.visit(id, set).map_err(because)?;
            }
        }
        match self.graph.outputs().iter().find(|io| edited.is_changed(io.value)) {
            Some(io) => {
                let name = &self.graph.value(io.value).name;
                Err(Illegal::new(format!("the output `{name}` would have another size")))
            }
            None => Ok(edited.note()),
        }
    }
}
