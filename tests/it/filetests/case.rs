//! The format of a `.test` file.

/// A test: its kind and its named sections.
pub struct Case {
    pub kind: String,
    /// Everything before the first section, with the line that names the kind.
    head: String,
    sections: Vec<(String, String)>,
}

impl Case {
    /// Reads `test <kind>`, prose, and sections that begin with `--- <name>`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let first = text.lines().next().unwrap_or_default();
        let kind =
            first.strip_prefix("test ").ok_or("the first line is not `test <kind>`")?.trim().to_string();
        let mut case = Self { kind, head: String::new(), sections: Vec::new() };
        for line in text.split_inclusive('\n') {
            if let Some(name) = line.strip_prefix("--- ") {
                let name = name.trim().to_string();
                if case.section(&name).is_some() {
                    return Err(format!("there are two sections `{name}`"));
                }
                case.sections.push((name, String::new()));
                continue;
            }
            let body = case.sections.last_mut().map_or(&mut case.head, |(_, body)| body);
            body.push_str(line);
        }
        Ok(case)
    }

    /// A section's text without the newlines at its end.
    pub fn section(&self, name: &str) -> Option<&str> {
        self.sections.iter().find(|(n, _)| n == name).map(|(_, body)| body.trim_end_matches('\n'))
    }

    /// A section that the kind cannot do without.
    pub fn required(&self, name: &str) -> Result<&str, String> {
        self.section(name).ok_or_else(|| format!("there is no section `{name}`"))
    }

    /// Refuses sections that the kind does not read: they would test nothing.
    pub fn check_sections(&self, known: &[&str]) -> Result<(), String> {
        match self.sections.iter().find(|(name, _)| name != "expect" && !known.contains(&name.as_str())) {
            Some((name, _)) => Err(format!(
                "a `{}` test has no section `{name}`, only {} and expect",
                self.kind,
                known.join(", ")
            )),
            None => Ok(()),
        }
    }

    /// The file with `expect` in place of what it expected before.
    pub fn with_expect(&self, expect: &str) -> Result<String, String> {
        if let Some(line) = expect.lines().find(|line| line.starts_with("--- ")) {
            return Err(format!("`{line}` would begin a section"));
        }
        let mut text = self.head.clone();
        for (name, body) in self.sections.iter().filter(|(name, _)| name != "expect") {
            text.push_str(&format!("--- {name}\n{body}"));
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("--- expect\n{expect}\n"));
        Ok(text)
    }
}
