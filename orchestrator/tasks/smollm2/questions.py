"""Everyday questions in plain English, written for this purpose: what a person might ask out of the blue."""

import random

TOPICS = {
    "How do I {}?": (
        "boil an egg", "clean a coffee machine", "write a thank-you note", "choose a good melon", "fall asleep faster",
        "start running", "make friends in a new town", "say no politely", "remember names", "save money on food",
        "learn to swim as an adult", "keep a plant alive", "wrap a present", "ask for a raise", "fix a squeaky door",
        "train a puppy", "plan a small party", "get rid of a cold", "cook rice", "read more books",
        "take better photos", "write a short poem", "calm a crying baby", "change a bicycle tyre", "make soup",
        "stop biting my nails", "pack for a weekend", "speak in front of people", "clean a window", "fold a shirt",
        "apologise to a friend", "grow tomatoes", "stay warm in winter", "learn a song by heart", "make pancakes",
        "write a letter of complaint", "keep a diary", "find a lost cat", "study for an exam", "sharpen a knife",
    ),
    "Why {}?": (
        "is the sky blue", "do cats purr", "do leaves fall in autumn", "is the sea salty", "do we dream",
        "do people yawn", "is honey sweet", "do onions make us cry", "does bread rise", "do birds sing",
        "does the moon change its shape", "do we need sleep", "is ice slippery", "do dogs wag their tails",
        "does music make us happy", "do bees dance", "do stars twinkle", "is snow white", "do we laugh",
        "does thunder follow lightning", "do people travel", "is exercise good for us", "do old books smell",
        "does time seem to fly", "do we celebrate birthdays", "do zebras have stripes", "is friendship important",
        "do wheels have spokes", "do we shiver", "does the wind blow",
    ),
    "What {}?": (
        "is a good hobby for the evening", "makes a good neighbour", "should I cook tonight", "is the water cycle",
        "can I do on a rainy day", "is a fair price for a used bicycle", "do I need for a picnic",
        "is the best way to learn a language", "makes a story exciting", "should I say at a wedding",
        "does a librarian do", "is photosynthesis", "can I give my grandmother for her birthday",
        "is it like to live in a village", "makes people happy", "is the difference between weather and climate",
        "should a beginner know about chess", "do penguins eat", "is democracy", "happens when we sneeze",
        "can I make from old newspapers", "is a healthy breakfast", "should I look for in a used car",
        "are the seasons", "do teachers do all day", "is gravity", "makes a city beautiful",
        "is the use of a compass", "can children learn from games", "should I do when I am lost",
    ),
    "Tell me about {}.": (
        "the first day at school", "a market in the morning", "the ocean", "a good teacher", "your favourite season",
        "the history of bread", "life on a farm", "a journey by train", "the invention of the wheel", "the moon",
        "a famous painting", "rivers", "a lighthouse", "how paper is made", "the life of a bee", "a rainy Sunday",
        "the smell of coffee", "winter in the mountains", "a library", "the oldest trees", "dancing", "deserts",
        "a kind stranger", "clocks", "the alphabet", "volcanoes", "the night sky", "gardens", "bridges", "a good meal",
    ),
    "Can you explain {} to me?": (
        "how a bicycle stays upright", "what money is for", "how rain is made", "why we have leap years",
        "how a seed becomes a tree", "what a poem is", "how a phone call works", "why metals rust",
        "how we taste things", "what a map shows", "how glass is made", "why ships float", "how vaccines work",
        "what an echo is", "how a candle burns", "why the days are longer in summer", "how a violin makes sound",
        "what rules a debate has", "how soap cleans", "why we have rules", "how a fridge keeps things cold",
        "what a shadow is", "how birds find their way", "why we have fingerprints", "how cheese is made",
        "what kindness is", "how a rainbow forms", "why bread gets stale", "how memory works", "what luck is",
    ),
    "Please give me advice on {}.": (
        "moving to another city", "a difficult colleague", "my first job interview", "buying a house",
        "getting up early", "a long flight", "a shy child", "spending less time on my phone", "eating better",
        "a first date", "choosing a school", "working from home", "an old car", "a noisy flat", "keeping a promise",
        "sharing a kitchen", "a lazy afternoon", "losing a game", "a bad haircut", "meeting new people",
        "caring for my parents", "being on time", "a broken friendship", "too much to do", "learning from mistakes",
        "an unfair boss", "walking more", "a tight budget", "a long winter", "making up my mind",
    ),
}  # fmt: skip


def split_questions(*, heldout: int, seed: int) -> tuple[list[str], list[str]]:
    """(training, held-out) questions; none stands in both."""
    questions = [form.format(topic) for form, topics in TOPICS.items() for topic in topics]
    random.Random(seed).shuffle(questions)
    return questions[heldout:], questions[:heldout]
