//! The kinds of elements: blocks, headings, and those that are not the subject of a page.

use super::Tag;

/// Elements that are left out with their contents.
pub(super) fn is_left_out(name: &str) -> bool {
    matches!(
        name,
        "script"
            | "style"
            | "nav"
            | "noscript"
            | "template"
            | "iframe"
            | "object"
            | "canvas"
            | "annotation"
            | "annotation-xml"
            | "datalist"
            | "noembed"
            | "noframes"
            | "audio"
            | "video"
            | "dialog"
    )
}

/// Whether an element says by its role, its class or its id that it is not the page's subject: menus, banners, notices about
/// cookies.
pub(super) fn is_clutter(tag: &Tag) -> bool {
    const ROLES: [&str; 9] =
        ["navigation", "banner", "contentinfo", "search", "dialog", "alertdialog", "menu", "menubar", "toolbar"];
    const NAMES: [&str; 24] = [
        "nav",
        "navbar",
        "navigation",
        "nav-menu",
        "main-menu",
        "mainmenu",
        "main-nav",
        "site-nav",
        "topnav",
        "sidenav",
        "breadcrumb",
        "breadcrumbs",
        "skip-link",
        "site-header",
        "site-footer",
        "page-footer",
        "footer",
        "cookieconsent",
        "cookie-law-info-bar",
        "gdpr",
        "social-share",
        "share-buttons",
        "sharedaddy",
        "mw-navigation",
    ];
    const NOTICES: [&str; 8] = ["banner", "consent", "notice", "bar", "popup", "modal", "overlay", "message"];
    if !matches!(tag.name, "div" | "section" | "aside" | "header" | "footer" | "ul" | "ol" | "form" | "p" | "table") {
        return false;
    }
    if tag.get("role").is_some_and(|role| ROLES.contains(&role.trim())) {
        return true;
    }
    let names = [tag.get("id"), tag.get("class")].map(Option::unwrap_or_default).join(" ").to_ascii_lowercase();
    let is_about_cookies =
        || names.split_whitespace().any(|name| name.starts_with("cookie")) && NOTICES.iter().any(|notice| names.contains(notice));
    names.split_whitespace().any(|name| NAMES.contains(&name)) || is_about_cookies()
}

/// The least number of links, and percentage of linked words, of an element that is a menu if it has that many. Notes in a margin
/// have the names of menus too, and a list of links may be the subject of a page, but rarely before its first heading.
pub(super) fn menu_of_links(tag: &Tag, before_headings: bool) -> Option<(usize, usize)> {
    const NAMES: [&str; 9] = ["sidebar", "side-bar", "menu", "toc", "related", "related-links", "links", "tags", "pagination"];
    let names = [tag.get("id"), tag.get("class")].map(Option::unwrap_or_default).join(" ").to_ascii_lowercase();
    match tag.name {
        "div" | "section" | "aside" | "ul" if names.split_whitespace().any(|name| NAMES.contains(&name)) => Some((3, 80)),
        "ul" if before_headings => Some((5, 95)),
        _ => None,
    }
}

pub(super) fn is_block(name: &str) -> bool {
    matches!(
        name,
        "address"
            | "article"
            | "aside"
            | "blockquote"
            | "body"
            | "caption"
            | "center"
            | "dd"
            | "details"
            | "div"
            | "dl"
            | "dt"
            | "fieldset"
            | "figcaption"
            | "figure"
            | "footer"
            | "form"
            | "header"
            | "hr"
            | "html"
            | "legend"
            | "main"
            | "p"
            | "section"
            | "summary"
            | "head"
    )
}

pub(super) fn heading_level(name: &str) -> Option<usize> {
    match name.as_bytes() {
        [b'h', level @ b'1'..=b'6'] => Some(usize::from(level - b'0')),
        _ => None,
    }
}
