"""The documentation site: `sphinx-build -W docs build/site`."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

from fused_adamw import runtime_info

DOCS = Path(__file__).parent
REPOSITORY = DOCS.parent

project = "fused-adamw"
copyright = "the authors of fused-adamw"
release = runtime_info()["version"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = "fused-adamw"
html_copy_source = False

# ---- what pages need that the extra [docs] does not install, or that is missing on some platforms

NEEDS = {
    "tutorials/5-from-torch-optim": "torch",
    "tutorials/6-off-loading": "torch",
    "tutorials/7-other-arrays": "jax",
    "api/torch": "torch",
    "api/offload": "torch",
}
INCOMPLETE = {page: module for page, module in NEEDS.items() if not find_spec(module)}
NOTE = "\n\n```{{important}}\n{} This site was built where `{}` is not installed.\n```\n\n"

# ---- pages

myst_heading_anchors = 4  # the anchors that code hosts give to headings

# Files outside of docs/ that are pages of the site too. Links to them, and from them, are written
# as a code host needs them.
OUTSIDE = {
    "CONTRIBUTING.md": "project/contributing",
    "CHANGELOG.md": "project/changelog",
    "benches/README.md": "project/benches",
    "examples/README.md": "project/examples",
}
PAGES = {page: REPOSITORY / file for file, page in OUTSIDE.items()}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]*)")


def read_page(app, docname, source):
    """Resolve links of a page, and fill in the pages that are outside of docs/."""
    path = Path(app.env.doc2path(docname))
    if docname in PAGES:
        app.env.note_dependency(str(PAGES[docname]))
        source[0] = PAGES[docname].read_text(encoding="utf-8")
    origin = PAGES.get(docname, path).parent

    def resolved(link):
        target = Path(os.path.normpath(origin / link[1]))
        file = target.relative_to(REPOSITORY).as_posix()
        if file in OUTSIDE:
            target = DOCS / f"{OUTSIDE[file]}.md"
        return Path(os.path.relpath(target, path.parent)).as_posix()

    if path.suffix == ".md":
        source[0] = LINK.sub(resolved, source[0])
    if docname in INCOMPLETE:
        source[0] = marked_incomplete(docname, source[0])


def marked_incomplete(docname, text):
    """A page with a note below its heading: of a tutorial without outputs, or of no reference."""
    before, heading, after = re.split(r"^(# .*)$", text, maxsplit=1, flags=re.M)
    if docname.startswith("api/"):
        return heading + NOTE.format("The reference is missing.", INCOMPLETE[docname])
    return before + heading + NOTE.format("The outputs are missing.", INCOMPLETE[docname]) + after


def setup(app):
    app.connect("source-read", read_page)


# ---- notebooks

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
nb_execution_excludepatterns = [f"{page}.md" for page in INCOMPLETE]

# ---- API

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings say them, shorter than nested aliases do
autodoc_mock_imports = ["mpi4py"]
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes in the text of the class, as several are properties too
suppress_warnings = ["ref.python"]  # of annotations such as AdamW, which several modules have
