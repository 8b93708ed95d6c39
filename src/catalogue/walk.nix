# Walks the attributes of a package set and tells of each on stderr, one line of JSON at a time: whatever ends the evaluation,
# all that came before is known, and so is the attribute at which it ended. Gives nothing itself.
#
# resume:   null, or from where to go on: { root, path, again }; that attribute itself only if again
# explain:  null, or the one attribute whose error is wanted: { root, path }
# only:     null, or the one attribute that is wanted at all: { root, path }
# getRoots: what is walked, from { call }: a list of values
{ token, system, resume, explain, only, getRoots }:
let
  depthMax = 12;

  # What a file gives, called with the system where it wants one.
  call = value:
    if builtins.isFunction value
    then value (builtins.intersectAttrs (builtins.functionArgs value) { inherit system; })
    else value;

  roots = getRoots { inherit call; };

  say = event: builtins.trace "${token} ${builtins.toJSON event}";

  # Forces all that is told of a value, so that an error comes here.
  describe = path: value:
    if !builtins.isAttrs value then { }
    else if (value.type or null) == "derivation" then
      let
        drv = builtins.unsafeDiscardStringContext value.drvPath;
        name = builtins.unsafeDiscardStringContext (value.name or "");
      in
      builtins.seq drv (builtins.seq name { inherit drv name; })
    else if builtins.length path < depthMax && (path == [ ] || (value.recurseForDerivations or false) == true) then
      let names = builtins.attrNames value; in builtins.seq names { inherit names; }
    else { };

  visit = root: resume: path: value:
    let
      tried = builtins.tryEval (describe path value);
      told = tried.value;
      child = name:
        let go = from: visit root from (path ++ [ name ]) value.${name}; in
        if resume == null || name > builtins.head resume then go null
        else if name < builtins.head resume then true
        else go (builtins.tail resume);
      walk =
        if !tried.success then say { inherit root; thrown = path; } true
        else if told ? drv then say { inherit root; inherit (told) drv name; found = path; } true
        else if told ? names then builtins.foldl' (done: name: builtins.seq done (child name)) true told.names
        else true;
      begin = say { inherit root; begun = path; };
    in
    if resume == null then begin walk
    else if resume != [ ] then walk
    else if again then visit root null path value
    else true;

  again = resume.again;

  visitRoot = root:
    let go = from: visit root from [ ] (builtins.elemAt roots root); in
    if resume == null || root > resume.root then go null
    else if root < resume.root then true
    else go resume.path;

  all = builtins.genList visitRoot (builtins.length roots);

  # An error in it ends the evaluation, and is told by that.
  visitOnly =
    let
      inherit (only) root path;
      step = found: name:
        if found != null && builtins.isAttrs found.value && found.value ? ${name} then { value = found.value.${name}; } else null;
      found = builtins.foldl' step { value = builtins.elemAt roots root; } path;
      told = describe path found.value;
    in
    if found == null then say { inherit root; missing = path; } { }
    else if told ? drv then say { inherit root; inherit (told) drv name; found = path; } { }
    else { };
in
if only != null then visitOnly
else if explain == null
then builtins.foldl' (done: each: builtins.seq done (builtins.seq each { })) { } all
else
  builtins.seq
    (describe explain.path (builtins.foldl' (value: name: value.${name}) (builtins.elemAt roots explain.root) explain.path))
    { }
