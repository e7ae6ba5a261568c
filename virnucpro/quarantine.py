"""Why a record has no embedding: every reason, and what a page says of it."""

from enum import StrEnum
from typing import Self

__all__ = ["Reason"]


class Reason(StrEnum):
    """A reason as it stands in `quarantine.tsv`.

    Attributes:
        sentence: the same in words.
    """

    sentence: str

    def __new__(cls, value: str, sentence: str = "") -> Self:
        """Make the member: its name in files, and its sentence."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member

    # of a record of a FASTA file
    TEXT = "text", "what stands there is not residues"
    ID_AS_SEQUENCE = "id_as_sequence", "the id stands in place of the residues"
    TOO_LONG = "too_long", "longer than split.max_record_residues"
    EMPTY = "empty", "no residues were left after normalising"
    NUCLEOTIDES = "nucleotides", "the letters are those of a nucleotide sequence"
    INVALID_LETTERS = "invalid_letters", "too many letters are no amino acids"
    UNKNOWN_RESIDUES = "unknown_residues", "too many residues are unknown"

    # of a gene of an annotation
    PSEUDO = "pseudo", "the annotation calls it a pseudogene"
    LOCATION = "location", "its place on the contig cannot be read, or is not on it"
    NO_SEQUENCE = "no_sequence", "the entry has neither its nucleotides nor its translation"
    GENETIC_CODE = "genetic_code", "its translation table is not known"
    CODON_START = "codon_start", "its reading frame is not 1, 2 or 3"

    # of a computation
    NOT_FINITE = "not_finite", "the model gave NaN or infinity, in float32 too"
    OUT_OF_RANGE = "out_of_range", "a value does not fit into the output's dtype"
    OUT_OF_MEMORY = "out_of_memory", "the device's memory does not hold this one sequence"

    # of an export of a store
    NOT_IN_STORE = "not_in_store", "the store does not hold it"
