"""Exact rescaling: which powers of two a model can be multiplied by, and which are chosen.

The question. A float16 run breaks because some result exceeds 65504. Multiply some weights
by powers of two so that every result fits, without changing what the model computes. A power of two
changes the exponent of a floating-point number and no digit, so as long as nothing overflows or
becomes subnormal, such a change is exact: it can be undone bit for bit.

The idea. Every parameter, and every number of the config that reaches an operation, gets an unknown
exponent. The forward is traced without weights, and along its data flow the scale of each tensor is
``2 ** form``, where ``form`` is a linear form over the unknowns: a product adds the forms of its
factors, a square doubles, a root halves, a mean keeps. Operations add linear equations:

- Tensors that are added or concatenated need the same form.
- What is read by something that is not homogeneous (softmax, silu, a clamp at a constant) needs
  the form 0, and so do the logits.
- ``variance + epsilon`` needs an epsilon that is scaled like the variance.

The integer solutions are the exact rescalings of the model, whatever its architecture and whatever
its modules are called. Two of them have names: a factor on everything that writes into the residual
stream, which norms take out again, and a factor on ``up`` with its inverse on ``down``.

The choice. What a scan measured in float32 turns "every result fits" into inequalities over the
same forms, so choosing is an integer linear program: exponents as small and as few as possible, a
price for digits that stored weights lose and for epsilons that are not scaled with their variance,
by what these were measured to be, and a high price for each bit of headroom that is missing. If a
result cannot be made to fit, the same
program with breakable equations shows which of them prevent it, with their lines of code.

Parts of a parameter. Gate and up are often one matrix whose product is split afterwards, and
queries, keys and values of each head may lie beside one another, so such parts need an unknown
each: lanes. Which elements belong to which lane is kept as numbers, and views and copies are run
on them. Where to divide is not known in advance: the flow is interpreted again with the divisions
that its views need, until there is no new one. Merged experts have an unknown each too; which rows
an expert gets is not known before the model runs, but the rows of a grouped product are sorted by
expert. Peaks are measured by lane and by expert, so that no lane counts the peaks of another.

Assumptions.

- The forward does the same for every text, and for every image of a size: the trace sees one batch
  of zeros, and one batch of each medium that the model takes.
- An operation without a rule is not homogeneous. That is safe: it may cost a solution, and never
  makes an inexact one.
- Peaks measured on some texts are typical of others; the requested headroom is the margin.

What it cannot see.

- Code that depends on numbers (``if hidden.max() > ...``): the model is refused. Token ids, sizes
  and positions are known (``precheck.measure.trace.known_numbers``).
- What none of these batches passes; a fix is refused where parameters are left over.
- Rounding. Values may become subnormal in float16, ``w`` of a scaled ``1 + w`` is rounded when it
  is stored, and an epsilon that is not in the config cannot be scaled. That is why every fix is
  measured before it is kept (``precheck.cure.proof``).

To read in this order: ``forms`` (unknowns, linear forms, equations), ``precheck.measure.trace``
(the trace), ``equations`` (one pass over it after another), ``tensor_scale`` and ``constraints``
(what a pass keeps), ``rules`` with ``products``, ``sums`` and ``views`` (a rule for each
operation), ``config_numbers`` (numbers of the config), ``solve`` and ``prices`` (the integer
program), ``traced_checkpoint``, ``blocks``, ``stored_changes`` and ``weight_ranges`` (from unknowns
to the tensors that are stored).
"""
