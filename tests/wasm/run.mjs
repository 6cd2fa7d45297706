// Start CPython compiled to WebAssembly, mount the project and its packages, and run pytest in it: see __init__.py.
//
//   node tests/wasm/run.mjs PYODIDE PROJECT SITE_PACKAGES [ARGUMENT OF PYTEST]...

import { pathToFileURL } from "node:url";

const [pyodide, project, packages, ...options] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(`${pyodide}/pyodide.mjs`));
const python = await loadPyodide({ env: { HOME: "/home/pyodide", SESSIONKIT_BACKENDS: "sqlite" } });
for (const [folder, real] of [["/project", project], ["/packages", packages]]) {
  python.FS.mkdirTree(folder);
  python.mountNodeFS(folder, real);
}
python.FS.chdir("/project");
python.globals.set("options", python.toPy(options));
let code = 1;
try {
  code = python.runPython(`
import sys
sys.dont_write_bytecode = True
sys.path[:0] = ["/project", "/project/src"]
sys.path.append("/packages")
from tests.wasm.inside import main
main(options)
`);
} catch (error) {
  // Left to Node, it would come with the line of the file that raised it, which has a megabyte.
  console.error(error.message);
}
process.exit(code);
