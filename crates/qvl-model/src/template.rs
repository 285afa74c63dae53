//! The checkpoint's own chat template, rendered as transformers renders it.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, ErrorKind, Value};
use serde::Serialize;

use crate::checkpoint::TextFile;
use crate::error::{Error, Result};

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What it says.
    pub content: Content,
}

impl Message {
    /// A message of the user's.
    pub fn user(parts: impl Into<Vec<Part>>) -> Self {
        Self { role: "user".to_owned(), content: Content::Parts(parts.into()) }
    }

    /// An earlier answer.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self { role: "assistant".to_owned(), content: Content::Text(text.into()) }
    }

    /// A message that says how to behave.
    pub fn system(text: impl Into<String>) -> Self {
        Self { role: "system".to_owned(), content: Content::Text(text.into()) }
    }
}

/// The content of a message. Templates may treat the two forms differently.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Text, pictures and videos in order.
    Parts(Vec<Part>),
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// The next image.
    Image,
    /// The next video.
    Video,
}

impl Part {
    /// A piece of text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}

/// A parsed chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    name: String,
}

/// Steps a template may take: a thousand times what a long conversation needs, so that a template that
/// loops for ever ends with an error.
const FUEL: u64 = 50_000_000;

impl ChatTemplate {
    /// Parses the template.
    ///
    /// # Errors
    /// [`Error::Template`] with the line that is wrong.
    pub fn parse(file: TextFile) -> Result<Self> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| template_error(&file.name, &error))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        let name = file.name;
        environment
            .add_template_owned("chat_template", file.text)
            .map_err(|error| template_error(&name, &error))?;
        Ok(Self { environment, name })
    }

    /// The prompt of a conversation, ending where the assistant's answer begins.
    ///
    /// # Errors
    /// [`Error::Template`], also when the template itself refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<String> {
        #[derive(Serialize)]
        struct Context<'a> {
            messages: &'a [Message],
            add_generation_prompt: bool,
        }
        self.environment
            .get_template("chat_template")
            .and_then(|template| template.render(Serde(Context { messages, add_generation_prompt: true })))
            .map_err(|error| template_error(&self.name, &error))
    }
}

fn template_error(file: &str, error: &minijinja::Error) -> Error {
    Error::Template { file: file.to_owned(), reason: error.to_string().replace('\n', " ") }
}

/// JSON with the separators of Python's `json.dumps`, which transformers' filter uses: `", "` and `": "`.
fn to_json(value: &Value) -> Result<Value, minijinja::Error> {
    struct Spaced;
    impl serde_json::ser::Formatter for Spaced {
        fn begin_array_value<W: ?Sized + std::io::Write>(
            &mut self,
            w: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }

        fn begin_object_key<W: ?Sized + std::io::Write>(
            &mut self,
            w: &mut W,
            first: bool,
        ) -> std::io::Result<()> {
            if first { Ok(()) } else { w.write_all(b", ") }
        }

        fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
            w.write_all(b": ")
        }
    }
    let fail = |error: String| minijinja::Error::new(ErrorKind::BadSerialization, error);
    let mut bytes = Vec::new();
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced))
        .map_err(|error| fail(error.to_string()))?;
    String::from_utf8(bytes).map(Value::from_safe_string).map_err(|error| fail(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(template: &str, messages: &[Message]) -> Result<String> {
        ChatTemplate::parse(TextFile { name: "t.jinja".to_owned(), text: template.to_owned() })?
            .render(messages)
    }

    #[test]
    fn blocks_are_trimmed_as_transformers_trims_them() {
        let template = "{% for m in messages %}\n  {% if m.role == 'user' %}\n{{ m.role }}:{{ m.content }}\n  {% endif %}\n{% endfor %}\n";
        let message = Message { role: "user".to_owned(), content: Content::Text("hi".to_owned()) };
        assert_eq!(render(template, &[message]).unwrap(), "user:hi\n");
    }

    #[test]
    fn parts_look_as_the_published_templates_expect() {
        let template = "{%- for p in messages[0].content -%}\
            {%- if p.type == 'image' or 'image' in p or 'image_url' in p %}I{% elif p.type == 'video' or 'video' in p %}V\
            {%- elif 'text' in p %}{{ p.text }}{% endif %}{% endfor %}";
        let message = Message::user([Part::Image, Part::text("a"), Part::Video]);
        assert_eq!(render(template, &[message]).unwrap(), "IaV");
    }

    #[test]
    fn python_methods_and_json_with_spaces() {
        let template = "{{ messages[0].content.strip().split('|')[1].startswith('b') }} {{ {'a': [1, 2], 'b': '<é>'} | tojson }}";
        let message = Message { role: "user".to_owned(), content: Content::Text(" a|b ".to_owned()) };
        assert_eq!(
            render(template, &[message]).unwrap().to_lowercase(),
            "true {\"a\": [1, 2], \"b\": \"<é>\"}"
        );
    }

    #[test]
    fn a_template_that_refuses_or_is_broken_or_never_ends_is_an_error() {
        let refusal = render("{{ raise_exception('no system message') }}", &[]).unwrap_err().to_string();
        assert!(refusal.contains("t.jinja") && refusal.contains("no system message"), "{refusal}");
        assert!(render("{% for %}", &[]).unwrap_err().to_string().contains("t.jinja"));
        let endless =
            "{% for a in range(100000) %}{% for b in range(100000) %}{% set c = a %}{% endfor %}{% endfor %}";
        assert!(render(endless, &[]).is_err());
    }
}
