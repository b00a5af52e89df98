import pytest
import torch

from engine.errors import InvalidPrompt, UnknownClass
from engine.lexicon import DEFAULT_TERMS
from engine.processing import END, Request, SpexProcessor


def test_every_listed_synonym_is_accepted(processor):
    for term in DEFAULT_TERMS:
        for word in term.words:
            assert processor.lexicon.find(word) == term.name
            assert processor.lexicon.find(f"The {word.upper()}") == term.name


@pytest.mark.parametrize(("word", "near"), [("watter", "water"), ("vegitation", "vegetation"), ("bilding", "building"), ("bare sol", "bare soil")])
def test_a_near_miss_is_refused_and_the_nearest_word_named(processor, word, near):
    with pytest.raises(UnknownClass, match=near):
        processor.lexicon.find(word)


@pytest.mark.parametrize("word", ["irrigated fields", "dead trees", "snow", "", "fire", "trees or snow", "water, not bare"])
def test_an_unknown_word_is_refused_with_what_is_known(processor, word):
    with pytest.raises(UnknownClass, match="it knows vegetation, building, water, bare"):
        processor.lexicon.find(word)


def test_a_sentence_names_one_class_or_a_union(processor):
    assert processor.lexicon.find_in("Please outline the water bodies.") == ("water",)
    assert processor.lexicon.find_in("Where is grass or shrub or water?") == ("grass_or_shrub", "water")
    assert processor.lexicon.find_in("Map all water and buildings in this image.") == ("water", "building")


@pytest.mark.parametrize(
    ("sentence", "says"),
    [("everything", "everything"), ("Segment the irrigated cropland.", "irrigated"), ("water without trees", "excludes"), ("Map it.", "no class")],
)
def test_a_sentence_with_words_that_nobody_taught_is_refused(processor, sentence, says):
    with pytest.raises(UnknownClass, match=says):
        processor.lexicon.find_in(sentence)


def test_unions_are_found_and_kinds_of_a_named_class_left_out(processor):
    assert processor.lexicon.find_union("trees or water") == ("tree_cover", "water")
    assert processor.lexicon.find_union("trees_or_water") == ("tree_cover", "water")
    assert processor.lexicon.find_union("grass or shrub") == ("grass_or_shrub",)
    assert processor.lexicon.find_union("grass or shrub, and open water") == ("grass_or_shrub", "water")
    assert processor.lexicon.find_union("trees or vegetation") == ("vegetation",)


def test_text_round_trips_through_the_tokenizer(processor):
    for text in ("Segment the bare ground.", 'Attributes: [{"Centroid": [0.609, 0.188]}]', "Größe 12 %"):
        assert processor.text(processor.tokenizer.encode(text).ids) == text


def test_every_digit_is_a_token(processor):
    assert len(processor.tokenizer.encode("0123456789").ids) == 10


def test_an_instruction_cannot_smuggle_in_special_tokens(processor):
    tokens = processor.prompts([[Request("water", instruction=f"water {END} {END}")]]).tokens
    assert int((tokens == processor.end).sum()) == 1


def test_the_answer_is_the_same_whatever_is_asked_or_told(processor):
    plain = processor.prompts([[Request("water")]])
    rich = processor.prompts([[Request("water", "Where is open water?", " Attributes: []", " There is no water.")]])
    assert torch.equal(plain.tokens[plain.answer], rich.tokens[rich.answer])


def test_padding_is_neither_attended_nor_learnt(processor):
    prompts = processor.prompts([[Request("water"), Request("bare", description=" There is no bare ground.")]])
    padded = ~prompts.attention
    assert padded.any() and (prompts.labels[padded] == -100).all() and not prompts.answer[padded].any()


def test_only_the_description_is_learnt(processor):
    prompts = processor.prompts([[Request("water", description=" There is no water.")]])
    learnt = prompts.tokens[prompts.labels != -100].tolist()
    assert processor.text(learnt) == "There is no water." and learnt[-1] == processor.end


def test_images_must_ask_the_same_number_of_classes(processor):
    with pytest.raises(InvalidPrompt):
        processor.prompts([[Request("water")], [Request("water"), Request("bare")]])


def test_a_prompt_that_is_too_long_is_refused(processor):
    with pytest.raises(InvalidPrompt, match="longer than"):
        processor.prompts([[Request("water", "water " * 2000)]])


def test_a_saved_processor_gives_the_same_tokens(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = SpexProcessor.from_pretrained(tmp_path)
    request = [[Request("building", attributes=' Attributes: [{"Size of area": "huge"}]')]]
    assert torch.equal(processor.prompts(request).tokens, again.prompts(request).tokens)
    assert again.lexicon.terms == processor.lexicon.terms
