# Walks the attributes of a package set and tells of each on stderr, one line of JSON at a time: whatever ends the evaluation,
# all that came before is known, and so is the attribute at which it ended. Gives nothing itself, except where jobs are wanted.
#
# resume:   null, or from where to go on: { root, path, again }; that attribute itself only if again
# explain:  null, or the one attribute whose error is wanted: { root, path }
# only:     null, or the one attribute that is wanted at all: { root, path }
# within:   null, or the one attribute that is walked, with all below it: { root, path }
# jobs:     null, or what nix-eval-jobs is to walk instead: { skip, outside }; without the attributes in skip, which are
#           { root, path } each, and not at all where the file outside may be read
# getRoots: what is walked, from { call }: a list of values
{ token, system, resume, explain, only, within, jobs, getRoots }:
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
        # The output that this value is, which need not be the first: its name, or else its path.
        own = value.outputName or value.outPath or null;
        output = if builtins.isString own then builtins.unsafeDiscardStringContext own else null;
        # The program that it is run by. A description that throws is no error of the derivation.
        main = builtins.tryEval (value.meta.mainProgram or null);
        program = if main.success && builtins.isString main.value then builtins.unsafeDiscardStringContext main.value else null;
      in
      builtins.seq drv (builtins.seq name (builtins.seq output (builtins.seq program { inherit drv name output program; })))
    else if builtins.length path < depthMax && (path == [ ] || (value.recurseForDerivations or false) == true) then
      let names = builtins.attrNames value; in builtins.seq names { inherit names; }
    else { };

  # Whether it is beside the way to what is walked.
  isBeside = path: name:
    within != null && builtins.length path < builtins.length within.path
    && name != builtins.elemAt within.path (builtins.length path);

  visit = root: resume: path: value:
    let
      tried = builtins.tryEval (describe path value);
      told = tried.value;
      child = name:
        let go = from: visit root from (path ++ [ name ]) value.${name}; in
        if isBeside path name then true
        else if resume == null || name > builtins.head resume then go null
        else if name < builtins.head resume then true
        else go (builtins.tail resume);
      walk =
        if !tried.success then say { inherit root; thrown = path; } true
        else if told ? drv then say { inherit root; inherit (told) drv name output program; found = path; } true
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
    if within != null && root != within.root then true
    else if resume == null || root > resume.root then go null
    else if root < resume.root then true
    else go resume.path;

  all = builtins.genList visitRoot (builtins.length roots);

  # An error in it ends the evaluation, and is that of the last attribute on the way which was begun.
  visitOnly =
    let
      inherit (only) root path;
      go = value: done: rest:
        let name = builtins.head rest; told = describe done value; in
        say { inherit root; begun = done; } (
          if rest != [ ] then
            if builtins.isAttrs value && value ? ${name} then go value.${name} (done ++ [ name ]) (builtins.tail rest)
            else say { inherit root; missing = path; } { }
          else if told ? drv then say { inherit root; inherit (told) drv name output program; found = path; } { }
          else { }
        );
    in
    go (builtins.elemAt roots root) [ ] path;

  # The same attributes as values, each of which tells when it is begun and when it is done: nix-eval-jobs does not say at which
  # it ended. By its own rules it finds all of them in this, and nothing else.
  job = root: path: value:
    let
      told = describe path value;
      isLeftOut = name: builtins.elem { inherit root; path = path ++ [ name ]; } jobs.skip;
      child = name: { name = safe name; value = job root (path ++ [ name ]) value.${name}; };
      node =
        # It prints the name as it is, and of the outputs each release something else.
        if told ? drv
        then { type = "derivation"; name = builtins.toJSON [ told.name told.output told.program ]; drvPath = told.drv; outPath = told.drv; }
        else if told ? names then folder (map child (builtins.filter (name: !isLeftOut name) told.names))
        else { };
    in
    say { inherit root; begun = path; } (builtins.seq told (say { inherit root; done = path; } node));

  folder = entries: builtins.listToAttrs entries // { recurseForDerivations = true; };

  # A name that it can find again: no number, and nothing that means something in an attribute path.
  safe = name: "_" + builtins.replaceStrings [ "%" "." "\"" ] [ "%25" "%2E" "%22" ] name;

  rootJob = root: { name = safe (toString root); value = job root [ ] (builtins.elemAt roots root); };

  allJobs =
    if builtins.pathExists jobs.outside then throw "this nix-eval-jobs does not heed restrict-eval"
    else folder (builtins.genList rootJob (builtins.length roots));
in
if jobs != null then allJobs
else if only != null then visitOnly
else if explain == null
then builtins.foldl' (done: each: builtins.seq done (builtins.seq each { })) { } all
else
  builtins.seq
    (describe explain.path (builtins.foldl' (value: name: value.${name}) (builtins.elemAt roots explain.root) explain.path))
    { }
